"""What the report says of runs on several ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcstab.metrics import EventLog
from hpcstab.report import write_report
from hpcstab.rundir import RunDir
from tests.report.synthetic import make_run


def test_ranks_are_named_with_what_they_change(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", variant, 0) for variant in ("before", "after", "cured")]
    shares = {"num_ranks": 2, "batch_size": 32, "batch_size_per_rank": 16}
    _start_again(runs[1], **shares, joins_samples=["BatchNorm", "the sliced Wasserstein distance"])
    _start_again(runs[2], **shares | {"num_ranks": 4, "batch_size_per_rank": 8}, joins_samples=[])
    text = _report(runs, tmp_path)
    assert (
        "after: 2 ranks, each with 16 of a batch's 32 samples; BatchNorm and the sliced Wasserstein distance know no"
        " others, so that another number of ranks is another training." in text
    )
    assert (
        "cured: 4 ranks, each with 8 of a batch's 32 samples; the loss is a mean over samples, so that their number"
        " changes rounding alone." in text
    )
    assert "The runs differ in their number of ranks (1 in before; 2 in after; 4 in cured)." in text


def test_of_one_rank_nothing_is_said(tmp_path: Path) -> None:
    assert "ranks" not in _report([make_run(tmp_path / "runs")], tmp_path)


def _start_again(run: RunDir, **facts: Any) -> None:
    events = EventLog(run.events_jsonl, attempt=1)
    events.write("train_start", 0, 0, device="cpu", device_name="test", num_threads=1, **facts)
    events.close()


def _report(runs: list[RunDir], folder: Path) -> str:
    assert write_report(runs, folder / "report") is not None
    text = (folder / "report" / "report.md").read_text()
    return " ".join(text.split())
