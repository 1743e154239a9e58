"""Host names, user names in paths, and what looks like a secret: replaced before a file leaves the machine."""

from __future__ import annotations

import contextlib
import getpass
import json
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpcstab.explain.facts import Facts

_SECRET = re.compile(
    r"(?i)((?:api[_-]?key|token|secret|passw(?:or)?d|credential)\w*[\"']?\s*[:=]\s*[\"']?)([^\s\"',;]{4,})"
)
_HOME = re.compile(r"(/(?:home|Users|u|users)/)([A-Za-z_][\w.-]*)")


class Replacer:
    """Replaces the names that a run's files hold: hosts by ``host1``, ``host2``, ..., a user in a path by ``user``."""

    def __init__(self, hosts: Iterable[str], users: Iterable[str]) -> None:
        short = sorted({host.partition(".")[0] for host in hosts if host} - {"", "localhost"}, key=len, reverse=True)
        self._hosts = {host: f"host{number}" for number, host in enumerate(short, 1)}
        self._host = (
            re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, short))})((?:\.[a-zA-Z][\w-]*)*)(?![\w-])")
            if short
            else None
        )
        names = "|".join(re.escape(user) for user in sorted(users, key=len, reverse=True) if user)
        self._user = re.compile(rf"(?<=/)(?:{names})(?=/|$|[\s\"',:;)\]])") if names else None

    def text(self, text: str) -> str:
        """A text without them."""
        text = _SECRET.sub(r"\1***", text)
        text = _HOME.sub(r"\1user", text)
        if self._user is not None:
            text = self._user.sub("user", text)
        return self._host.sub(lambda found: self._hosts[found[1]], text) if self._host else text

    def value(self, value: Any) -> Any:
        """The same in a JSON value; keys stay as they are."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(entry) for key, entry in value.items()}
        return [self.value(entry) for entry in value] if isinstance(value, list | tuple) else value

    def content(self, name: str, content: bytes) -> bytes:
        """A file of a run, by the form that its name says."""
        text = content.decode(errors="replace")
        if name.endswith(".json"):
            try:
                return (json.dumps(self.value(json.loads(text)), indent=1) + "\n").encode()
            except ValueError:
                return self.text(text).encode()
        if name.endswith(".jsonl"):
            return "".join(map(self._json_line, text.splitlines(keepends=True))).encode()
        return self.text(text).encode()

    def _json_line(self, line: str) -> str:
        try:
            return json.dumps(self.value(json.loads(line))) + "\n"
        except ValueError:
            return self.text(line)


def replacer_for(facts: Facts) -> Replacer:
    """With the hosts that the run's records name, and the people whose folders its paths go through."""
    seen, hosts = facts.seen, {socket.gethostname()}
    for attempt in facts.attempts:
        hosts |= {str(attempt.get("node") or ""), str((attempt.get("process") or {}).get("host") or "")}
    if seen.ledger is not None:
        processes = [seen.ledger.owner, *(job.process for job in seen.ledger.jobs)]
        hosts |= {process.host for process in processes if process is not None}
    if facts.scheduled is not None and facts.scheduled.answer.node:
        hosts.add(facts.scheduled.answer.node)
    users = {Path.home().name, getpass.getuser()}
    with contextlib.suppress(KeyError, OSError):  # its owner has no name here
        users.add(facts.run.path.owner())
    return Replacer(hosts, users)
