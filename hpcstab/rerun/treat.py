"""A checkpoint on its way into a rerun goes past the doctor: a sick one is repaired in a copy, or refused."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpcstab.doctor import Repair, repair
from hpcstab.errors import EXIT_BAD_NEWS, CheckpointError
from hpcstab.execute import reestimate


@contextmanager
def treated(path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """(what is sound, what was repaired): ``path`` itself, or a repaired copy that is there within the block.

    Raises:
        CheckpointError: it cannot be read, could run code, or cannot be made sound; says what to do.
    """
    with tempfile.TemporaryDirectory(prefix="hpcstab-rerun-") as folder:
        outcome = repair(path, Path(folder) / path.name, reestimate=reestimate)
        if outcome.source.verdict == "healthy":
            yield path, ()
            return
        if outcome.out is None:
            raise _refusal(outcome)
        changes = [{"name": c.name, "how": c.how, "meaning": c.meaning} for c in outcome.changes]
        yield outcome.out, repair_lines(changes)


def repair_lines(changes: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What the doctor changed, as its manifests hold it under ``repairs``; a line for all that it did alike."""
    alike: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        alike.setdefault((change["how"], change["meaning"]), []).append(change["name"])
    return tuple(f"{how} {', '.join(names)}: {meaning}" for (how, meaning), names in alike.items())


def _refusal(outcome: Repair) -> CheckpointError:
    findings = outcome.left or outcome.source.sick or outcome.source.findings
    first = f"{findings[0].name}: {findings[0].text}" if findings[0].name else findings[0].text
    more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
    advice = "; ".join(outcome.advice) or f"`hpcstab doctor {outcome.source.path}` says more"
    verdict = outcome.source.verdict
    exit_code = EXIT_BAD_NEWS if verdict in ("sick", "unsafe") else None
    return CheckpointError(
        f"{outcome.source.path} is {verdict} ({first}{more}), and the doctor cannot make it sound: {advice}",
        exit_code=exit_code,
    )
