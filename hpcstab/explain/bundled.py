"""The story of a bundle on the receiving side: told anew from its files, as of the moment it was made."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hpcstab.errors import RunError
from hpcstab.explain.archive import unpack_archive
from hpcstab.explain.case import Command
from hpcstab.explain.facts import Facts
from hpcstab.explain.look import Asking, facts_of
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.story import Section, Story
from hpcstab.rundir import RunDir
from hpcstab.state.checkpoints import CheckpointHealth


def story_of_bundle(path: Path, asking: Asking) -> Story:
    """Unpack it into a temporary folder, verified, and look at the run in it.

    What only the sender could see (the bytes of checkpoints, what to type there) is the sender's word; a capsule that
    came along is replayed here.

    Raises:
        RunError: it is no bundle, of a newer version, or was altered.
    """
    with tempfile.TemporaryDirectory(prefix="hpcstab-why-") as folder:
        manifest = unpack_archive(path, Path(folder))
        if manifest.get("hpcstab_bundle") != 1:
            raise RunError(f"{path}: is a bundle of version {manifest.get('hpcstab_bundle')}; this hpcstab reads 1")
        sent = json.loads((Path(folder) / "why.json").read_text(encoding="utf-8"))
        run = RunDir(Path(folder) / "runs" / str(manifest["run_id"]))
        asking = replace(asking, foreign=True)
        facts = facts_of(run, asking, float(manifest["created"]), checkpoints=_checkpoints(sent))
        story = story_of_run(_with_replay_of_sender(facts, sent))
    commands = tuple(Command(entry["line"], entry["why"]) for entry in sent["next"])
    told = Section("bundle", tuple(_about(path, manifest)))
    return replace(story, commands=commands, sections=(told, *story.sections))


def _checkpoints(sent: Mapping[str, Any]) -> tuple[CheckpointHealth, ...]:
    return tuple(CheckpointHealth(**{**entry, "roles": tuple(entry["roles"])}) for entry in sent["checkpoints"])


def _with_replay_of_sender(facts: Facts, sent: Mapping[str, Any]) -> Facts:
    if facts.replay is not None or sent["replay"] is None:
        return facts
    return replace(facts, replay=sent["replay"], no_replay="")


def _about(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    made = datetime.fromtimestamp(manifest["created"]).strftime("%Y-%m-%d %H:%M")
    left = manifest["left_out"]
    lines = [f"{path}, made {made} by hpcstab {manifest['hpcstab']}; what follows is as of then"]
    return lines + ([f"left out: {len(left)}, e.g. {left[0]['name']} ({left[0]['reason']})"] if left else [])
