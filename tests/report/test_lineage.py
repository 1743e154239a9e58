"""Reruns in the report: with their parents, at risk from their own first step on, never in a comparison."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hpcstab.report import write_report
from hpcstab.report.claims import answer_claims
from hpcstab.report.compare import compare_pairs
from hpcstab.report.facts import section_rows
from hpcstab.report.figures import make_figures
from hpcstab.report.lanes import at_risk, still_finite
from hpcstab.report.lineage import lineage_notes, with_ancestors
from hpcstab.report.load import load_runs
from hpcstab.report.sections import Section, make_sections
from hpcstab.rundir import RunDir
from tests.report.synthetic import STEPS, edit_identity, make_run

BRANCH = STEPS // 2


def rerun_of(parent: RunDir, root: Path, step: int = BRANCH, **options: Any) -> RunDir:
    """A run whose rows begin at ``step`` of its parent."""
    run = make_run(root, "after", **options)
    for path in (run.metrics_csv, run.evals_csv):
        rows = pd.read_csv(path)
        rows[rows["step"] >= step].to_csv(path, index=False)
    facts = {
        "run_id": parent.run_id, "path": str(parent.path), "checkpoint": f"step_{step:08d}", "step": step,
        "update": step, "sha256": "0" * 64, "repaired": None, "weights_only": False, "added": ["hardened"],
        "overrides": {}, "fresh": ["the guards (they were off)"],
    }  # fmt: skip
    edit_identity(run, parent=facts, label=f"after (rerun from step {step})")
    return run


@pytest.fixture
def family(tmp_path: Path) -> tuple[RunDir, RunDir]:
    parent = make_run(tmp_path / "runs", "after", fails_at=BRANCH + 2)
    return parent, rerun_of(parent, tmp_path / "runs")


def section_of(*runs: RunDir) -> Section:
    loaded, broken = load_runs(with_ancestors(list(runs)))
    assert not broken
    (section,) = make_sections(loaded)
    return section


def test_a_rerun_brings_its_parent_along(family: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    parent, child = family
    assert with_ancestors([child]) == [child, parent]
    grandchild = rerun_of(child, tmp_path / "runs", BRANCH + 1, seed=1)
    assert with_ancestors([grandchild]) == [grandchild, child, parent]
    assert with_ancestors([parent, child]) == [parent, child]


def test_a_copied_root_is_complete_and_a_lost_parent_is_said(family: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    parent, child = family
    copied = RunDir(Path(shutil.copytree(tmp_path / "runs", tmp_path / "laptop")) / child.run_id)
    assert with_ancestors([copied])[1] == RunDir(tmp_path / "laptop" / parent.run_id)
    shutil.rmtree(parent.path)
    (note, _) = lineage_notes(section_of(child))
    assert note.startswith(f"after (rerun from step {BRANCH}) seed 0 goes on from step {BRANCH} of {parent.run_id}")
    assert ", which is not here; with hardened; starting anew: the guards (they were off)" in note


def test_it_is_at_risk_from_its_own_first_step_on(family: tuple[RunDir, RunDir]) -> None:
    section = section_of(family[1])
    whole, rerun = section.groups
    assert (whole.label, rerun.label) == ("after", f"after (rerun from step {BRANCH})")
    assert [len(at_risk(rerun, step)) for step in (0, BRANCH - 1, BRANCH, STEPS)] == [0, 0, 1, 1]
    assert still_finite(rerun, 0) == (0, 0)
    assert still_finite(rerun, STEPS) == (1, 0)
    assert still_finite(whole, BRANCH) == (1, 0)
    assert [outcome.failed_step for outcome in section.outcomes] == [BRANCH + 2, None]


def test_it_enters_no_pair_and_answers_no_claim(family: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    before = make_run(tmp_path / "runs", "before", fails_at=8)
    section = section_of(before, family[1])
    pairs = [(pairing.first, pairing.second) for pairing in compare_pairs(section)]
    assert pairs == [("after", "before")]
    rows = section_rows(section)
    nonfinite = [claim for claim in answer_claims(section, rows) if claim.test == "after: nonfinite = 0"]
    assert [(claim.measured, claim.answer) for claim in nonfinite] == [("1", "refuted")], "of the parent alone"
    alone = section_of(before)
    assert [pairing.first for pairing in compare_pairs(alone)] == []


def test_the_page_tells_and_draws_it(family: tuple[RunDir, RunDir], tmp_path: Path) -> None:
    parent, child = family
    report = write_report([child], tmp_path / "out")
    page = report.html.read_text()
    told = f"goes on from step {BRANCH} of {parent.run_id}, which failed at step {BRANCH + 2} and is diverged"
    assert told in page and "at risk from its first own step on" in page
    with (report.folder / "runs.csv").open() as file:
        rows = {row["run_id"]: (row["parent"], row["from_step"]) for row in csv.DictReader(file)}
    assert rows == {parent.run_id: ("", ""), child.run_id: (parent.run_id, str(BRANCH))}
    assert "still allows a failure rate" not in page, "one trajectory says nothing about a rate"


def test_a_parent_of_another_length_is_drawn_into_its_childs_figures(tmp_path: Path) -> None:
    parent = make_run(tmp_path / "runs", "after", fails_at=BRANCH + 2)
    child = rerun_of(parent, tmp_path / "runs")
    edit_identity(child, overrides={"trainer.max_steps": STEPS})
    loaded, _ = load_runs(with_ancestors([child]))
    sections = make_sections(loaded)
    of_child = next(section for section in sections if section.groups[0].is_rerun)
    assert len(sections) == 2 and of_child.parent_of(of_child.runs[0]) is not None
    alone = Section(of_child.model, of_child.scale, of_child.compare, of_child.horizon, of_child.groups)
    with_parent, without = (make_figures(section)[1].png for section in (of_child, alone))
    assert with_parent != without


def test_a_rerun_behind_the_declared_horizon_is_shown_whole(tmp_path: Path) -> None:
    parent = make_run(tmp_path / "runs", "after")
    child = rerun_of(parent, tmp_path / "runs")
    for run in (parent, child):
        edit_identity(run, compare={**run.identity()["compare"], "horizon_steps": BRANCH - 1})
    assert section_of(parent).horizon == BRANCH - 1
    assert section_of(child).horizon == STEPS
