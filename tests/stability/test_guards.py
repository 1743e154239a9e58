"""Each guard on sequences made by hand: first steps, NaN, constant figures, and what comes when."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from hpcstab.stability.gate.gate import LAG
from hpcstab.stability.guards.drift import DriftGuard
from hpcstab.stability.guards.guards import DELAY, Finding, Guards, StreakGuard, Update, Verdict
from hpcstab.stability.guards.headroom import LARGEST_FP16, LARGEST_GRADIENT, LOSS_SCALE, HeadroomGuard
from hpcstab.stability.guards.ladder import Ladder
from hpcstab.stability.guards.spikes import NEVER, SpikeGuard, spike_threshold
from hpcstab.stability.guards.stalled import StalledGuard


def spike_guard(**changes: Any) -> SpikeGuard:
    return SpikeGuard(**{"window": 8, "min_updates": 4, "deviations": 5.0, "ratio": 3.0, "refresh_every": 1, **changes})


def update(index: int, loss: float, norm: float, readings: Mapping[str, float] | None = None) -> Update:
    return Update(index, index, 0, loss, norm, readings or {})


def make_guards(**changes: Any) -> Guards:
    return Guards(StreakGuard(3), spike_guard(**changes), None, {"stalled": StalledGuard(4, 0.0, Verdict.HALT)})


def feed(guards: Guards, losses: Sequence[float], first: int = 0) -> None:
    for index, loss in enumerate(losses, first):
        guards.applied(update(index, loss, 1.0))


def test_the_delay_covers_the_lag() -> None:
    assert DELAY >= LAG


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], NEVER),
        ([math.nan, math.inf], NEVER),
        ([0.0, 0.0, 0.0], NEVER),  # any value would be infinitely many deviations away
        ([2.0, 2.0, 2.0], 6.0),  # constant: ratio 3
        ([2.0, math.nan, 2.0], 6.0),
        ([-2.0, -2.0], 2.0),  # losses below zero have room too
        ([1.0, 2.0, 3.0], 2.0 + 5 * 1.4826),  # deviations reach further than the ratio
        ([10.0, 11.0, 12.0], 33.0),  # the ratio does
        ([1.0, 1.0, 1.0, 1e9], 3.0),  # one outlier moves nothing
    ],
)
def test_threshold_of_a_window(values: list[float], expected: float) -> None:
    assert spike_threshold(values, 5.0, 3.0) == pytest.approx(expected)


def test_no_threshold_before_the_window_has_enough() -> None:
    guards = make_guards()
    for index in range(12):
        loss, norm = guards.thresholds(index)
        assert norm == NEVER
        assert (loss == NEVER) == (index - DELAY < 4)
        guards.applied(update(index, 1.0, 1.0))


def test_a_threshold_does_not_depend_on_how_late_the_host_is() -> None:
    """For the same update it is the same, whether the last updates were read already or not, and when it runs again."""
    losses = [3.0 + math.sin(7.0 * index) for index in range(60)]
    seen: dict[int, set[float]] = {}
    for lag in range(LAG + 1):
        guards = make_guards(refresh_every=3)
        for index in range(60):
            for ahead in range(lag + 1):  # launched ahead, refused, launched again
                seen.setdefault(index + ahead, set()).add(guards.thresholds(index + ahead)[0])
            guards.applied(update(index, losses[index], 1.0))
    assert all(len(values) == 1 for values in seen.values())
    assert len({next(iter(values)) for values in seen.values()}) > 10


def test_a_threshold_changes_only_at_its_refreshments() -> None:
    guards = make_guards(refresh_every=5)
    thresholds = []
    for index in range(40):
        thresholds.append(guards.thresholds(index)[0])
        guards.applied(update(index, 1.0 + index, 1.0))
    changes = [index for index in range(1, 40) if thresholds[index] != thresholds[index - 1]]
    assert changes == [index for index in range(5 + DELAY, 40) if (index - DELAY) % 5 == 0]


def guards_with_norms() -> Guards:
    guards = Guards(StreakGuard(3), spike_guard(), spike_guard(), {})
    feed(guards, [1.0] * 20)
    return guards


def refused(step: int, index: int, loss: float = math.nan, grad_norm: float = math.nan) -> Update:
    return Update(index, step, 0, loss, grad_norm)


def test_norms_that_stay_large_are_a_state_and_no_bad_batch() -> None:
    """As on real fields: three batches in a row with ten times the norm and the same loss, whatever the batch."""
    guards = guards_with_norms()
    assert max(guards.thresholds(20)) < 100.0
    streak = [guards.skipped(refused(20 + number, 20, loss=1.1, grad_norm=100.0)) for number in range(3)]
    assert streak[:2] == [[], []]
    (finding,) = streak[2]
    assert (finding.verdict, finding.data) == (
        Verdict.CONTINUE,
        {"num_skips": 3, "began_at": 20, "accepted": "grad_norm"},
    )
    assert guards.due(10**6) is None
    loss, norm = guards.thresholds(20)
    assert (loss < 100.0, norm) == (True, math.inf), "norms are judged anew, losses as before"
    assert guards.streak.began_at is None


@pytest.mark.parametrize("other", [(math.nan, math.nan), (1.0, math.inf), (99.0, 100.0), (1.1, 1.0)])
def test_one_step_among_them_that_was_refused_for_more_is_trouble(other: tuple[float, float]) -> None:
    guards = guards_with_norms()
    figures = [(1.1, 100.0), other, (1.1, 100.0)]
    found = [guards.skipped(refused(20 + number, 20, *each)) for number, each in enumerate(figures)]
    assert found[2][0].verdict == Verdict.BACKOFF


def test_refused_steps_in_a_row() -> None:
    guards = make_guards()
    assert not guards.skipped(refused(10, 4))
    assert not guards.skipped(refused(11, 4))
    (finding,) = guards.skipped(refused(12, 4))
    assert (finding.verdict, finding.data) == (Verdict.BACKOFF, {"num_skips": 3, "began_at": 10})
    assert guards.due(4) == finding
    assert guards.due(3) is None
    guards.restart()
    assert guards.due(4) is None
    assert guards.streak.began_at == 10  # a rollback goes to before all of it
    guards.applied(update(4, 1.0, 1.0))
    assert (guards.streak.num_skips, guards.streak.began_at) == (0, None)


def test_a_verdict_on_an_update_counts_after_the_delay() -> None:
    guards = make_guards()
    feed(guards, [1.0] * 8)
    assert guards.due(7 + DELAY) is None
    due = guards.due(7 + DELAY + 1)
    assert due is not None
    assert (due.guard, due.verdict) == ("stalled", Verdict.HALT)


def test_the_largest_verdict_counts() -> None:
    guards = make_guards()
    feed(guards, [1.0] * 8)
    for step in range(8, 11):
        guards.skipped(refused(step, 8 + DELAY))
    due = guards.due(8 + DELAY)
    assert due is not None
    assert due.verdict == Verdict.HALT


def test_a_new_objective_begins_a_new_window() -> None:
    """A threshold rests on steps with the weights of its own; while a weight ramps up there are none."""
    guards = make_guards()
    for index in range(8):
        guards.applied(Update(index, 2 * index, 0, 1.0, 1.0))  # every other step was refused
    assert guards.thresholds(10, since=0)[0] == 3.0
    assert guards.thresholds(10, since=8)[0] == 3.0  # the updates 4 to 7
    assert guards.thresholds(10, since=10)[0] == NEVER  # three of them are too few
    restored = make_guards()
    restored.load_state_dict(json.loads(json.dumps(guards.state_dict())))
    assert restored.thresholds(10, since=8)[0] == 3.0
    assert restored.thresholds(10, since=10)[0] == NEVER


def test_learning_is_not_stalled_by_a_term_that_came_on() -> None:
    guard = StalledGuard(4, 0.0, Verdict.HALT)
    losses = [3.0] * 4 + [9.0] * 4 + [8.0] * 4 + [8.5] * 4
    found = [guard.see(Update(index, index, 4 if index >= 4 else 0, loss, 1.0)) for index, loss in enumerate(losses)]
    assert [index for index, finding in enumerate(found) if finding] == [15]


def test_a_restart_empties_the_windows() -> None:
    guards = make_guards()
    feed(guards, [1.0] * 10)
    assert guards.thresholds(10)[0] == 3.0
    guards.restart()
    assert guards.thresholds(10)[0] == NEVER
    feed(guards, [100.0] * 8, first=10)
    assert guards.thresholds(18)[0] == 300.0


def test_state_survives_json_and_goes_on_alike() -> None:
    losses = [2.0 + math.cos(3.0 * index) for index in range(30)]
    whole, parts = make_guards(refresh_every=3), make_guards(refresh_every=3)
    for index, loss in enumerate(losses):
        state = json.loads(json.dumps(parts.state_dict()))
        parts = make_guards(refresh_every=3)
        parts.load_state_dict(state)
        assert parts.thresholds(index) == whole.thresholds(index)
        assert parts.applied(update(index, loss, 1.0)) == whole.applied(update(index, loss, 1.0))
        assert parts.due(index + 3) == whole.due(index + 3)
    assert parts.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([4.0] * 4 + [4.0] * 4, True),
        ([4.0] * 4 + [3.9] * 4, True),  # a fall of 2.5 % is less than 5 %
        ([4.0] * 4 + [3.0] * 4, False),
        ([-1.0] * 4 + [-2.0] * 4, False),
        ([4.0] * 4 + [math.nan] + [3.0] * 3, False),  # a window is not full of what is no number
        ([4.0] * 7, False),
    ],
)
def test_stalled_learning(losses: list[float], found: bool) -> None:
    guard = StalledGuard(4, 0.05, Verdict.CONTINUE)
    findings = [guard.see(update(index, loss, 1.0)) for index, loss in enumerate(losses)]
    assert any(findings) == found


def test_modules_that_do_not_move_are_news_once() -> None:
    guard = StalledGuard(4, 0.0, Verdict.HALT)
    still, moving = [("a", 0.0, 0.0), ("b", 1.0, 0.1)], [("a", 1.0, 0.1), ("b", 1.0, 0.1)]
    told = guard.probed(still)
    assert told is not None
    # the cadence of probes is no part of the signature, so they may not change the training
    assert (told.verdict, told.data["modules"]) == (Verdict.CONTINUE, ["a"])
    assert [guard.probed(norms) is not None for norms in (still, moving, still)] == [False, False, True]


def drift_readings(mean_shift: float = 0.1, var_ratio: float = 1.5, largest_var: float = 1.0) -> dict[str, float]:
    prefix = "batchnorm.encoder.1."
    return {
        f"{prefix}mean_shift": mean_shift,
        f"{prefix}var_ratio": var_ratio,
        f"{prefix}largest_var": largest_var,
        LOSS_SCALE: 1.0,
    }


@pytest.mark.parametrize(
    ("readings", "what"),
    [
        (drift_readings(), None),
        (drift_readings(mean_shift=6.0), "mean_shift"),
        (drift_readings(var_ratio=11.0), "var_ratio"),
        (drift_readings(largest_var=21.0), "var_growth"),
        (drift_readings(mean_shift=math.nan), "mean_shift"),
        ({}, None),
    ],
)
def test_batchnorm_drift(readings: dict[str, float], what: str | None) -> None:
    guard = DriftGuard(5.0, 10.0, 20.0, Verdict.ROLLBACK)
    assert guard.see(update(0, 1.0, 1.0, drift_readings())) is None
    finding = guard.see(update(1, 1.0, 1.0, readings))
    assert (finding.data["what"] if finding else None) == what
    assert finding is None or (finding.verdict, finding.data["layer"]) == (Verdict.ROLLBACK, "encoder.1")


def headroom_updates(guard: HeadroomGuard, figures: Sequence[tuple[float, float]]) -> list[Finding | None]:
    return [
        guard.see(update(index, 1.0, 1.0, {LARGEST_GRADIENT: gradient, LOSS_SCALE: scale}))
        for index, (gradient, scale) in enumerate(figures)
    ]


def test_headroom_warns_before_the_overflow() -> None:
    guard = HeadroomGuard(0.5, 1, Verdict.CONTINUE)
    found = headroom_updates(guard, [(1.0, 4.0), (LARGEST_FP16 * 0.4, 4.0), (LARGEST_FP16 * 0.6, 4.0), (math.nan, 4.0)])
    assert [finding is not None for finding in found] == [False, False, True, True]
    assert guard.see(update(9, 1.0, 1.0)) is None  # no health check in this step


def test_headroom_warns_of_a_scale_that_only_falls() -> None:
    guard = HeadroomGuard(0.5, 1, Verdict.CONTINUE)
    found = headroom_updates(guard, [(1.0, scale) for scale in (64.0, 32.0, 16.0, 16.0, 8.0)])
    assert [finding is not None for finding in found] == [False, False, True, False, False]


def test_the_ladder_climbs_when_a_rung_is_used_up() -> None:
    ladder = Ladder(0.5, max_backoffs=2, max_rollbacks=1, recover_after=0)
    assert ladder.climb(Verdict.CONTINUE, 0) == Verdict.CONTINUE
    rungs = [ladder.climb(Verdict.BACKOFF, 10**6 * number) for number in range(4)]
    assert rungs == [Verdict.BACKOFF, Verdict.BACKOFF, Verdict.ROLLBACK, Verdict.HALT]
    assert ladder.lr_factor(10**9) == 0.125
    assert ladder.climb(Verdict.ROLLBACK, 10**9) == Verdict.HALT


def test_used_budgets_are_part_of_the_state() -> None:
    ladder, again = Ladder(0.5, 1, 2, 100), Ladder(0.5, 1, 2, 100)
    ladder.climb(Verdict.BACKOFF, 5)
    ladder.climb_for_fault(7, 6)
    again.load_state_dict(copy.deepcopy(ladder.state_dict()))
    assert [each.climb(Verdict.BACKOFF, 20) for each in (ladder, again)] == [Verdict.ROLLBACK] * 2
    assert again.climb_for_fault(8, 21) == Verdict.HALT


def test_states_of_earlier_versions_are_read() -> None:
    """A hardened run that is queued again after an update has checkpoints of them."""
    ladder = Ladder(0.5, max_backoffs=2, max_rollbacks=3, recover_after=0)
    ladder.load_state_dict({"lr_factor": 0.125, "num_backoffs": 2, "num_rollbacks": 2, "fault_steps": [7]})
    assert (ladder.lr_factor(50), ladder.used("backoff", 50), ladder.used("rollback", 50)) == (0.125, 2, 2)
    assert ladder.was_found_at(7)
    assert [ladder.climb(Verdict.BACKOFF, 50) for _ in range(2)] == [Verdict.ROLLBACK, Verdict.HALT]
    guards = guards_with_norms()
    state = guards.state_dict()
    state["streak"] = {"num_skips": 2, "began_at": 18}
    guards.load_state_dict(state)
    (finding,) = guards.skipped(refused(20, 20, loss=1.1, grad_norm=100.0))
    assert finding.verdict == Verdict.BACKOFF, "nobody knows what the first two were refused for"


def test_long_health_gives_rungs_back_one_by_one() -> None:
    ladder = Ladder(0.5, max_backoffs=2, max_rollbacks=1, recover_after=100)
    assert [ladder.climb(Verdict.BACKOFF, update) for update in (10, 60)] == [Verdict.BACKOFF] * 2
    factors = [ladder.lr_factor(update) for update in (60, 160, 210, 260, 310, 360, 10**6)]
    assert factors == pytest.approx([0.25, 0.25, 0.25 * math.sqrt(2), 0.5, 0.5 * math.sqrt(2), 1.0, 1.0])
    assert [update for update in range(500) if ladder.recovers_at(update)] == [260, 360]
    assert ladder.climb(Verdict.BACKOFF, 259) == Verdict.ROLLBACK, "what is given back in part is held"
    assert ladder.lr_factor(259) == 0.125
    assert (ladder.num_backoffs, ladder.used("backoff", 259), ladder.used("rollback", 259)) == (2, 2, 1)
    assert ladder.climb(Verdict.CONTINUE, 350) == Verdict.CONTINUE
    assert ladder.used("rollback", 459) == 0, "a warning is no verdict"
    assert ladder.climb(Verdict.BACKOFF, 559) == Verdict.BACKOFF, "one of two was given back"


def test_what_is_trained_again_after_a_rollback_gives_nothing_back() -> None:
    """It did: a run went back to step 0 from update 436 for ever, since the way there gave the rollback back."""
    ladder = Ladder(0.5, max_backoffs=0, max_rollbacks=2, recover_after=100)
    assert ladder.climb(Verdict.BACKOFF, 436) == Verdict.ROLLBACK
    assert [ladder.used("rollback", update) for update in (0, 200, 436, 635, 636)] == [1, 1, 1, 1, 0]
    rungs = [ladder.climb(Verdict.BACKOFF, 436) for _ in range(2)]
    assert rungs == [Verdict.ROLLBACK, Verdict.HALT]


def test_a_rung_charged_for_a_fault_is_given_back_too() -> None:
    ladder = Ladder(0.5, max_backoffs=1, max_rollbacks=1, recover_after=100)
    assert [ladder.climb_for_fault(step, step) for step in (7, 106, 107)] == [
        Verdict.ROLLBACK,
        Verdict.HALT,
        Verdict.ROLLBACK,
    ]
    assert ladder.climb_for_fault(7, 500) == Verdict.HALT, "it was there before"


def test_a_fault_at_the_same_step_twice_halts() -> None:
    ladder = Ladder(0.5, 1, 5, 100)
    rungs = [ladder.climb_for_fault(step, step) for step in (7, 9, 7)]
    assert rungs == [Verdict.ROLLBACK, Verdict.ROLLBACK, Verdict.HALT]
    assert ladder.lr_factor(10) == 1.0
