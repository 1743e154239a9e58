"""``hpcstab report``: which runs it takes, what it prints, how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from hpcstab.cli import main
from hpcstab.cli.report import choose_runs
from tests.report.synthetic import make_run

OLD, NEW = "swae3d_20261122_120000", "swae3d_20261123_120000"


def call(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["hpcstab", "report", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def test_prints_table_verdict_and_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs", "before", fails_at=8)
    make_run(tmp_path / "runs", "after")
    assert call("swae3d", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")) == 0
    out = capsys.readouterr().out
    assert out.startswith("variant\tseeds\tdiverged\t") and "before\t1\t1 of 1\t8\tdied" in out
    assert "before went non-finite in 1 of 1 seeds (at step 8)" in out
    assert f"report: {tmp_path / 'out' / 'report.html'}" in out


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs", "before", fails_at=8)
    assert call("--json", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["table"][0]["diverged"] == "1 of 1" and found["runs"][0]["loss_last"] is None
    assert Path(found["html"]).is_file()


def test_default_is_the_newest_campaign_and_keeps_what_broke_in_it(tmp_path: Path) -> None:
    for campaign in (OLD, NEW, None):
        make_run(tmp_path, "before", 0, campaign=campaign, state="queued")
    broken = make_run(tmp_path, "before", 1, campaign=NEW, state="queued")
    broken.run_json.write_text("{")
    later = broken.path.rename(broken.path.with_name("20261124_120000_s1_0123abcd"))
    name, runs, left_out = choose_runs([], False, tmp_path, None)
    assert name == NEW and left_out == 2 and len(runs) == 2 and later in [run.path for run in runs]
    assert len(choose_runs(["swae3d"], True, tmp_path, None).runs) == 4


def test_runs_of_train_where_there_is_no_campaign(tmp_path: Path) -> None:
    run = make_run(tmp_path, "before", campaign=None, state="queued")
    name, runs, _ = choose_runs(["swae3d"], False, tmp_path, None)
    assert name.startswith("swae3d_2") and [found.path for found in runs] == [run.path]


def test_runs_by_path_and_by_part(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path, variant, state="queued") for variant in ("before", "after"))
    _, runs, _ = choose_runs([str(first.path), "/after/"], False, tmp_path, None)
    assert [run.path for run in runs] == [first.path, second.path]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 3, "no runs under"),
        (["swae3d"], 3, "no runs of swae3d under"),
        (["swae3d", "--all"], 3, "hpcstab submit swae3d"),
        (["nonsense"], 2, "no run matches 'nonsense'"),
    ],
)
def test_nothing_to_report_on_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert call(*arguments, "--root", str(tmp_path / "none")) == code
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_only_unreadable_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs", "before", state="queued").run_json.write_text("[]")
    assert call("swae3d", "--root", str(tmp_path / "runs"), "--out", str(tmp_path / "out")) == 3
    assert "can be read" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_campaign_name_from_a_file_cannot_leave_the_reports_folder(tmp_path: Path) -> None:
    make_run(tmp_path, "before", campaign="../../etc/x_20261122_120000", state="queued")
    assert choose_runs([], False, tmp_path, None).folder == "_.._etc_x_20261122_120000"
