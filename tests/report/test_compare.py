"""Paired seeds under the declared hierarchy: a dead run is an outcome, a tie is a half, nothing is dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcstab.report.compare import Pairing, compare_pairs, failure_rate_bound, sign_test, smallest_p
from hpcstab.report.load import load_runs
from hpcstab.report.notes import certainty_notes
from hpcstab.report.sections import Section, make_sections
from hpcstab.rundir import RunDir
from tests.report.synthetic import edit_identity, make_run


def section_of(runs: list[RunDir]) -> Section:
    (section,) = make_sections(load_runs(runs)[0])
    return section


def against_before(tmp_path: Path, after: dict[str, Any], before: dict[str, Any]) -> Pairing:
    section = section_of([make_run(tmp_path, "before", **before), make_run(tmp_path, "after", **after)])
    (pairing,) = compare_pairs(section)
    assert (pairing.first, pairing.second) == ("after", "before")
    return pairing


@pytest.mark.parametrize(
    ("after", "before", "score", "level"),
    [
        ({"gain": -3.0}, {"fails_at": 30}, 1.0, "finite"),
        ({"fails_at": 30}, {"gain": -3.0}, 0.0, "finite"),
        ({"fails_at": 20}, {"fails_at": 8}, 1.0, "later_failure"),
        ({"fails_at": 8}, {"fails_at": 20}, 0.0, "later_failure"),
        ({"fails_at": 8}, {"fails_at": 8}, 0.5, "tie"),
        ({"gain": 1.0}, {"gain": 0.5}, 1.0, "better_primary"),
        ({"gain": 0.5}, {"gain": 1.0}, 0.0, "better_primary"),
        ({"gain": 1.05}, {"gain": 1.0}, 0.5, "tie"),
        ({"state": "running", "steps": 20}, {"fails_at": 8}, 1.0, "finite"),
        ({"state": "running", "steps": 5}, {"fails_at": 8}, None, "undecided"),
        ({"state": "failed", "steps": 0}, {"fails_at": 8}, None, "undecided"),
        ({"state": "lost", "steps": 20}, {"gain": 1.0}, None, "undecided"),
    ],
)
def test_hierarchy(
    tmp_path: Path, after: dict[str, Any], before: dict[str, Any], score: float | None, level: str
) -> None:
    pairing = against_before(tmp_path, after, before)
    assert pairing.scores == {0: score}
    assert pairing.levels == {level: 1}


def test_dropping_the_dead_would_turn_the_answer_round(tmp_path: Path) -> None:
    """A fix that rescues hard seeds at a lower PSNR: the survivors' contrast is negative, the fix wins."""
    runs = [make_run(tmp_path, "before", 0, gain=2.0), make_run(tmp_path, "after", 0, gain=1.5)]
    for seed in (1, 2, 3):
        runs += [make_run(tmp_path, "before", seed, fails_at=8), make_run(tmp_path, "after", seed, gain=0.5)]
    (pairing,) = compare_pairs(section_of(runs))
    assert (pairing.wins, pairing.ties, pairing.losses) == (3, 0, 1)
    assert pairing.probability == 0.75
    assert pairing.differences == {0: pytest.approx(-0.5)}


def test_undecided_pairs_bound_the_probability(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "before", seed, fails_at=8) for seed in (0, 1)]
    runs += [make_run(tmp_path, "after", 0), make_run(tmp_path, "after", 1, state="failed", steps=0)]
    (pairing,) = compare_pairs(section_of(runs))
    assert pairing.bounds == (0.5, 1.0) and pairing.undecided == 1 and pairing.p_value is None


def test_a_seed_that_ran_twice_counts_once_and_chooses_no_run(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "before", 0, fails_at=8), make_run(tmp_path, "before", 0, gain=2.0)]
    section = section_of([*runs, make_run(tmp_path, "after", 0, gain=1.0)])
    (pairing,) = compare_pairs(section)
    assert len(section.groups[0].runs) == 2
    assert pairing.scores == {0: 0.5}  # one pair won, one lost


def test_seeds_without_a_partner_are_named(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "before", seed, fails_at=8) for seed in (0, 1)] + [make_run(tmp_path, "after", 1)]
    (pairing,) = compare_pairs(section_of(runs))
    assert list(pairing.scores) == [1] and pairing.unpaired == (0,)


def test_scores_on_other_data_are_no_contest(tmp_path: Path) -> None:
    section = section_of([make_run(tmp_path, "after", gain=1.0), make_run(tmp_path, "before+repeated", gain=5.0)])
    runs = [*section.runs]
    assert runs[0].data_key != runs[1].data_key
    flawed = section_of([make_run(tmp_path, "before", gain=1.0), make_run(tmp_path, "before+repeated", gain=5.0)])
    (pairing,) = compare_pairs(flawed)
    assert pairing.undecided == 1 and not pairing.differences


def test_scores_of_runs_that_were_trained_on_other_data_are_one(tmp_path: Path) -> None:
    """What is left out of the training alone, as constant patches of xray2ctpa, leaves the held-out data the same."""
    runs = [make_run(tmp_path, "before", gain=1.0), make_run(tmp_path, "before+repeated", gain=5.0)]
    for run in runs:
        edit_identity(run, compare={**run.identity()["compare"], "training_only": ["functions"]})
    section = section_of(runs)
    (pairing,) = compare_pairs(section)
    assert pairing.levels == {"better_primary": 1} and pairing.differences == {0: pytest.approx(4.0)}
    assert "not measured on the same data" not in str(certainty_notes(section, [pairing]))
    assert len(section.by_data()) == 2, "a baseline can depend on the training data"


def test_cured_is_compared_with_after_too(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, variant, 0) for variant in ("before", "after", "cured")]
    pairs = [(pairing.first, pairing.second) for pairing in compare_pairs(section_of(runs))]
    assert pairs == [("after", "before"), ("cured", "before"), ("cured", "after")]


def test_horizon_is_the_smallest_planned_length(tmp_path: Path) -> None:
    """A run that dies beyond the horizon is finite in the comparison, and its death is still in its row."""
    long, short = make_run(tmp_path, "after", fails_at=30), make_run(tmp_path, "before", gain=1.0)
    short.config_yaml.write_text(short.config_yaml.read_text().replace("max_steps: 40", "max_steps: 20"))
    section = section_of([long, short])
    after = section.groups[1].outcomes[0]
    assert section.horizon == 20 and after.stayed_finite and after.run.diverged
    assert after.final == pytest.approx(14.0)  # the evaluation at step 20, not a later one


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (3, 0.25), (4, 0.125), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_smallest_reachable_p(n: int, p: float) -> None:
    assert smallest_p(n) == p


def test_sign_test_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    for wins, losses in [(0, 0), (2, 1), (7, 2), (5, 5), (0, 6)]:
        expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert sign_test(wins, losses) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "percent"), [(3, 63), (5, 45), (10, 26), (30, 10)])
def test_what_n_survivors_still_allow(n: int, percent: int) -> None:
    assert round(failure_rate_bound(n) * 100) == percent
