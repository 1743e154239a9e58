"""Which change mattered: variants that differ by one fix, and what is said of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcstab.metrics import EventLog
from hpcstab.report.lanes import lane_text
from hpcstab.report.load import load_runs
from hpcstab.report.sections import Section, make_sections
from hpcstab.report.single_changes import single_change_table, single_changes
from hpcstab.rundir import RunDir, read_json, write_json
from tests.report.synthetic import make_run

SEEDS = range(3)
DIES = {"fails_at": (8, 19, 31)}
LEARNS: dict[str, Any] = {"gain": 1.2}
LEARNS_NOTHING: dict[str, Any] = {"gain": -0.2}


def make(root: Path, variant: str, fails_at: tuple[int | None, ...] = (None,) * 3, **options: Any) -> list[RunDir]:
    return [make_run(root, variant, seed, fails_at=fails_at[seed], **options) for seed in SEEDS]


def section_of(root: Path) -> Section:
    (section,) = make_sections(load_runs([RunDir(path.parent) for path in root.glob("*/*/*/run.json")])[0])
    return section


def told(section: Section) -> dict[str, str]:
    """What is said of each change, by change."""
    return {row[0]: row[5] for row in single_change_table(section).rows}


def test_a_change_that_ends_the_failure_is_told_from_one_that_delays_it(tmp_path: Path) -> None:
    make(tmp_path, "before", **DIES)
    make(tmp_path, "before+batchnorm", **LEARNS)
    make(tmp_path, "before+gdn_bounded", **LEARNS_NOTHING)
    make(tmp_path, "before+lower_lambda", masked=2, **LEARNS)
    make(tmp_path, "before+clip", fails_at=(7, 19, 40))
    make(tmp_path, "before+lower_lr", fails_at=(30, None, 35))
    section = section_of(tmp_path)
    assert told(section) == {
        "before with batchnorm": "ends the failure, and it learns",
        "before with lower_lambda": "ends the failure, with what it hides, and it learns",
        "before with gdn_bounded": "ends the failure, and it learns nothing",
        "before with lower_lr": "fails all the same in 2 of 3: later or not at all in 3",
        "before with clip": "fails all the same in 3 of 3: later in 1, earlier in 1, as early in 1",
    }
    row = single_change_table(section).rows[0]
    assert row[1:5] == ("cure", "0 of 3 (3 of 3)", "3 of 3", "3 of 3")
    assert row[6].startswith("GDN divides by a root")


def test_a_fix_that_is_needed_and_one_that_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, "cured", **LEARNS)
    make(tmp_path, "cured-gdn_bounded", fails_at=(None, 12, 12), **LEARNS)
    make(tmp_path, "cured-hardened", **LEARNS)
    make(tmp_path, "cured-small_lambda", **LEARNS_NOTHING)
    assert told(section_of(tmp_path)) == {
        "cured without hardened": "no difference beyond the margin (+0.00, +0.00, +0.00 dB)",
        "cured without small_lambda": "worse in 3 of 3 (\N{MINUS SIGN}1.40, \N{MINUS SIGN}1.40, \N{MINUS SIGN}1.40 dB)",
        "cured without gdn_bounded": "brings a failure in 2 of 3",
    }


def test_a_failure_that_the_gate_keeps_out_is_not_ended(tmp_path: Path) -> None:
    make(tmp_path, "before", **DIES)
    for run in make(tmp_path, "before+hardened", state="completed", **DIES):
        status = read_json(run.status_json) or {}
        status["judgement"]["finite"]["answer"] = "yes"
        write_json(run.status_json, status)
    assert told(section_of(tmp_path)) == {
        "before with hardened": "meets the failure all the same; the gate keeps it out of the state"
    }


def test_a_declared_failure_of_finite_values_is_no_refusal(tmp_path: Path) -> None:
    """liquidreg's guard leaves a "correlation" of 10: its lane said "refused from step 0 on", under an open gate."""
    make(tmp_path, "before", **DIES)
    for run in make(tmp_path, "before+clip", **LEARNS):
        log = EventLog(run.events_jsonl, attempt=1)
        log.write("first_failure", 5, 5, what="diag_lncc_absmax", value=10.0)
        log.close()
        write_json(run.status_json, {**(read_json(run.status_json) or {}), "first_failure_step": 5})
    section = section_of(tmp_path)
    assert told(section) == {"before with clip": "stays finite and fails as declared in 3 of 3: earlier in 3"}
    (group,) = [group for group in section.groups if group.label == "before+clip"]
    assert {lane_text(outcome) for outcome in group.failed} == {"failed at step 5"}


def test_a_run_that_is_under_way_decides_nothing(tmp_path: Path) -> None:
    make(tmp_path, "before", **DIES)
    make_run(tmp_path, "before+clip", 0, state="queued")
    assert told(section_of(tmp_path)) == {"before with clip": "not decided yet"}


@pytest.mark.parametrize("settings", [(), ("optimizer.lr=1e-5",)])
def test_variants_that_differ_by_more_are_left_out(tmp_path: Path, settings: tuple[str, ...]) -> None:
    make(tmp_path, "before", **DIES)
    make(tmp_path, "after", **LEARNS)
    make(tmp_path, "before+clip+lower_lr", **LEARNS)
    if settings:  # another override is another change
        make(tmp_path, "before+clip", settings=settings, **LEARNS)
    assert single_changes(section_of(tmp_path)) == []
