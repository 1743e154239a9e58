"""One file about a run, to be sent to a colleague: its records, the ends of its logs, its first capsule, this story.

Not in it: tensors of checkpoints, samples, environment variables. What was left out for its size or for the names in
it stands in the MANIFEST.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hpcstab import __version__
from hpcstab.explain.archive import Entry, write_archive
from hpcstab.explain.facts import Facts
from hpcstab.explain.names import Replacer, replacer_for
from hpcstab.explain.story import Story
from hpcstab.explain.text import story_text
from hpcstab.rundir import SUBMISSIONS, bytes_below
from hpcstab.state.ledger import ANSWERS, raw_logs
from hpcstab.units import size

VERSION = 1
MAX_BYTES = 64_000_000
"""Of one file, and of the capsule; above it is left out, and said."""
LOG_BYTES = 256_000
"""Of each log its end."""


@dataclass
class Bundle:
    """What was put in, and what was left out, with the reason."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[dict[str, object]] = field(default_factory=list)

    def leave_out(self, name: str, num_bytes: int, reason: str) -> None:
        self.left_out.append({"name": name, "num_bytes": num_bytes, "reason": reason})


def write_bundle(
    path: Path, facts: Facts, story: Story, *, keep_names: bool = False, max_bytes: int = MAX_BYTES
) -> str:
    """Write the bundle of a run; a line about it.

    Raises:
        RunError: the name is taken or not that of an archive (exit code 2), or it cannot be written.
    """
    replacer = None if keep_names else replacer_for(facts)
    bundle = Bundle()
    bundle.entries += _story(story, replacer)
    _add_records(bundle, facts, replacer, max_bytes)
    _add_ledger(bundle, facts, replacer)
    _add_signed(bundle, facts, replacer, max_bytes)
    facts_of_bundle = {
        "hpcstab_bundle": VERSION,
        "hpcstab": __version__,
        "created": facts.now,
        "run_id": facts.run.run_id,
        "names": "kept" if keep_names else "replaced",
        "left_out": bundle.left_out,
    }
    num_bytes = write_archive(path, bundle.entries, facts_of_bundle)
    left = f", {len(bundle.left_out)} left out" if bundle.left_out else ""
    return f"{path}: {len(bundle.entries)} files{left}, {size(num_bytes)}, names {facts_of_bundle['names']}"


def _story(story: Story, replacer: Replacer | None) -> Iterator[Entry]:
    told = json.dumps(story.as_json(), indent=1, default=str)
    for name, text in (("why.txt", story_text(story) + "\n"), ("why.json", told)):
        yield Entry(name, _without_names(replacer, name, text.encode()))


def _add_records(bundle: Bundle, facts: Facts, replacer: Replacer | None, max_bytes: int) -> None:
    """What a run is, and the ends of its logs."""
    run = facts.run
    records = [
        run.run_json, run.config_yaml, run.task_json, run.status_json, run.metrics_csv, run.evals_csv, run.probes_csv,
        run.terms_csv, run.events_jsonl, run.checkpoints / "index.json", *sorted(run.attempts.glob("*.json")),
    ]  # fmt: skip
    for path in records:
        if not path.is_file():
            continue
        name = _name_in(facts, path)
        if path.stat().st_size > max_bytes:
            bundle.leave_out(name, path.stat().st_size, f"larger than {size(max_bytes)}")
            continue
        bundle.entries.append(Entry(name, _without_names(replacer, name, path.read_bytes())))
    for path in sorted(run.logs.glob("*.log")):
        _add_end(bundle, _name_in(facts, path), path, replacer)
    if run.samples.is_dir():
        bundle.leave_out(_name_in(facts, run.samples), bytes_below(run.samples), "pictures")


def _add_ledger(bundle: Bundle, facts: Facts, replacer: Replacer | None) -> None:
    """Of its campaign the job of this run alone, and what Slurm said about it."""
    ledger, job = facts.seen.ledger, facts.seen.job
    if ledger is None or job is None:
        return
    own = ledger.model_copy(update={"jobs": [job.model_copy(update={"index": 0})]}).model_dump(mode="json")
    name = f"runs/{SUBMISSIONS}/{ledger.campaign}.json"
    bundle.entries.append(Entry(name, _without_names(replacer, name, json.dumps(own).encode())))
    if facts.scheduled is not None:
        said = {**asdict(facts.scheduled.answer), "time": facts.scheduled.time}
        answers = {"asked": facts.scheduled.time, "problem": None, "jobs": {facts.scheduled.answer.job_id: said}}
        name = f"runs/{SUBMISSIONS}/{ANSWERS}"
        bundle.entries.append(Entry(name, _without_names(replacer, name, json.dumps(answers).encode())))
    for path in raw_logs(facts.run.path.parents[2], ledger, job):
        if path.is_file():
            _add_end(bundle, f"runs/{SUBMISSIONS}/{ledger.campaign}/{path.name}", path, replacer)


def _add_signed(bundle: Bundle, facts: Facts, replacer: Replacer | None, max_bytes: int) -> None:
    """Manifests of checkpoints and the first capsule: they vouch for their bytes, so that no name can be replaced."""
    for checkpoint in facts.checkpoints:
        folder = facts.run.checkpoints / checkpoint.name
        bundle.leave_out(_name_in(facts, folder / "state.pt"), checkpoint.num_bytes, "tensors of a checkpoint")
        _add_whole(bundle, facts, folder / "manifest.json", replacer)
    for number, folder in enumerate(sorted(facts.run.capsules.glob("step_*"))):
        name, num_bytes = _name_in(facts, folder), bytes_below(folder)
        if number or num_bytes > max_bytes:
            reason = "not the first capsule" if number else f"larger than {size(max_bytes)}"
            bundle.leave_out(name, num_bytes, reason)
        elif replacer is not None and _names_somebody(folder, replacer):
            bundle.leave_out(name, num_bytes, "names a host, or a user in a path; --keep-names takes it along")
        else:
            bundle.entries += [Entry(_name_in(facts, path), path) for path in sorted(folder.iterdir())]


def _add_whole(bundle: Bundle, facts: Facts, path: Path, replacer: Replacer | None) -> None:
    if not path.is_file():
        return
    name, text = _name_in(facts, path), path.read_text(encoding="utf-8", errors="replace")
    if replacer is not None and replacer.text(text) != text:
        bundle.leave_out(name, path.stat().st_size, "names a host, or a user in a path")
    else:
        bundle.entries.append(Entry(name, path))


def _names_somebody(capsule: Path, replacer: Replacer) -> bool:
    """In its manifest, or among the strings of its state: all that is no tensor is one pickle in torch's zip."""
    texts = [(capsule / "manifest.json").read_text(encoding="utf-8", errors="replace")]
    try:
        with zipfile.ZipFile(capsule / "state.pt") as state:
            texts += [state.read(name).decode("latin-1") for name in state.namelist() if name.endswith("data.pkl")]
    except (OSError, zipfile.BadZipFile):
        return True  # it cannot be told, so it does not leave
    return any(replacer.text(text) != text for text in texts)


def _add_end(bundle: Bundle, name: str, path: Path, replacer: Replacer | None) -> None:
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - LOG_BYTES))
        content = file.read()
    if num_bytes > LOG_BYTES:
        content = content[content.find(b"\n") + 1 :]
        bundle.leave_out(name, num_bytes - len(content), f"all but its last {size(LOG_BYTES)}")
    bundle.entries.append(Entry(name, _without_names(replacer, name, content)))


def _without_names(replacer: Replacer | None, name: str, content: bytes) -> bytes:
    return content if replacer is None else replacer.content(name, content)


def _name_in(facts: Facts, path: Path) -> str:
    """In a bundle a run lies as under any root, so that every verb can read it there."""
    return f"runs/{facts.run.run_id}/{path.relative_to(facts.run.path).as_posix()}"
