"""Which of two variants is better, by paired seeds, under the hierarchy that was declared before the runs.

A run that failed is an outcome like any other: it loses to one that stayed finite. Pairs that cannot be
decided yet (running, crashed) are counted as such and bound the probability from both sides.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

from hpcstab.config import Compare
from hpcstab.report.outcome import Outcome
from hpcstab.report.sections import Group, Section

ALPHA = 0.05


@dataclass(frozen=True)
class Decision:
    """1 where the first run is better, 0 where the second is, 1/2 for a tie, None undecided; and what decided."""

    score: float | None
    level: str


@dataclass(frozen=True)
class Pairing:
    """One variant against another over their common seeds.

    ``scores`` by seed; where a seed has several runs, the mean over their pairs, so that no run is chosen.
    ``differences`` of the primary metric (positive: the first is better) exist only where both stayed finite.
    """

    first: str
    second: str
    scores: Mapping[int, float | None]
    levels: Mapping[str, int]
    differences: Mapping[int, float]
    unpaired: tuple[int, ...]

    @property
    def wins(self) -> int:
        return sum(score is not None and score > 0.5 for score in self.scores.values())

    @property
    def ties(self) -> int:
        return sum(score == 0.5 for score in self.scores.values())

    @property
    def losses(self) -> int:
        return sum(score is not None and score < 0.5 for score in self.scores.values())

    @property
    def undecided(self) -> int:
        return sum(score is None for score in self.scores.values())

    @property
    def probability(self) -> float | None:
        """P(first beats second) over the decided seeds, ties 1/2."""
        decided = [score for score in self.scores.values() if score is not None]
        return mean(decided) if decided else None

    @property
    def bounds(self) -> tuple[float, float]:
        """The same if all undecided seeds were lost, and if all were won."""
        decided = sum(score for score in self.scores.values() if score is not None)
        num_seeds = max(1, len(self.scores))
        return decided / num_seeds, (decided + self.undecided) / num_seeds

    @property
    def p_value(self) -> float | None:
        """Two-sided exact sign test, ties left out; None while a seed is undecided or there is none."""
        if self.undecided or not self.scores:
            return None
        return sign_test(self.wins, self.losses)


def compare_pairs(section: Section) -> list[Pairing]:
    """Each variant against ``before`` with the same overrides; cured against after. Reruns are no runs of a seed."""
    pairings = []
    groups = [group for group in section.groups if not group.is_rerun]
    for group in groups:
        before = section.group("before", group.overrides) or section.group("before", {})
        if before is not None and group is not before:
            pairings.append(pair(group, before, section))
    for group in groups:
        after = section.group("after", group.overrides)
        if group.variant == "cured" and after is not None:
            pairings.append(pair(group, after, section))
    return pairings


def pair(first: Group, second: Group, section: Section) -> Pairing:
    """All pairs of runs with one seed."""
    scores: dict[int, float | None] = {}
    levels: Counter[str] = Counter()
    differences: dict[int, float] = {}
    for seed in sorted(set(first.seeds) & set(second.seeds)):
        couples = [(a, b) for a in first.outcomes for b in second.outcomes if a.seed == b.seed == seed]
        decisions = [decide(a, b, section.compare, section.sign) for a, b in couples]
        levels.update(decision.level for decision in decisions)
        known = [decision.score for decision in decisions if decision.score is not None]
        scores[seed] = mean(known) if len(known) == len(decisions) else None
        contrasts = [section.sign * (a.final - b.final) for a, b in couples if _both_scored(a, b)]  # type: ignore[operator]
        if contrasts:
            differences[seed] = mean(contrasts)
    unpaired = tuple(sorted(set(first.seeds) ^ set(second.seeds)))
    return Pairing(first.label, second.label, scores, dict(levels), differences, unpaired)


def decide(first: Outcome, second: Outcome, compare: Compare, sign: float) -> Decision:
    """The first level of the hierarchy that separates two runs decides."""
    for level in compare.hierarchy:
        score = _LEVELS[level](first, second, sign, compare.margin)
        if score is not None:
            return Decision(score, level)
    both_failed = first.failed_step is not None and second.failed_step is not None
    if both_failed or ("better_primary" not in compare.hierarchy and first.stayed_finite and second.stayed_finite):
        return Decision(0.5, "tie")
    return Decision(0.5, "tie") if _both_scored(first, second) else Decision(None, "undecided")


def _finite(first: Outcome, second: Outcome, sign: float, margin: float) -> float | None:
    """One failed, and the other stayed finite or has outlived that step: whatever becomes of it, it is better."""
    if second.failed_step is not None and first.failed_step is None:
        return 1.0 if first.stayed_finite or first.seen_steps > second.failed_step + 1 else None
    if first.failed_step is not None and second.failed_step is None:
        return 0.0 if second.stayed_finite or second.seen_steps > first.failed_step + 1 else None
    return None


def _later_failure(first: Outcome, second: Outcome, sign: float, margin: float) -> float | None:
    if first.failed_step is None or second.failed_step is None or first.failed_step == second.failed_step:
        return None
    return float(first.failed_step > second.failed_step)


def _better_primary(first: Outcome, second: Outcome, sign: float, margin: float) -> float | None:
    if not _both_scored(first, second):
        return None
    gain = sign * (first.final - second.final)  # type: ignore[operator]
    if math.isnan(gain):
        lost = [math.isnan(outcome.final) for outcome in (first, second)]  # type: ignore[arg-type]
        return None if all(lost) else float(lost[1])
    return None if abs(gain) <= margin else float(gain > 0)


_LEVELS = {"finite": _finite, "later_failure": _later_failure, "better_primary": _better_primary}


def _both_scored(first: Outcome, second: Outcome) -> bool:
    """Both reached the horizon with a score on the same data: scores on other data are no contest."""
    if first.run.held_out_key != second.run.held_out_key:
        return False
    return first.stayed_finite and second.stayed_finite and first.final is not None and second.final is not None


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact sign test: how likely a split at least this uneven is where neither is better."""
    n, larger = wins + losses, max(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(larger, n + 1)) / float(2**n))


def smallest_p(num_pairs: int) -> float:
    """The smallest two-sided p that ``num_pairs`` paired seeds can reach."""
    return sign_test(num_pairs, 0)


def failure_rate_bound(num_runs: int) -> float:
    """Upper 95 % bound (one-sided, exact) of the failure rate after ``num_runs`` runs without a failure."""
    return 1.0 - math.pow(ALPHA, 1.0 / num_runs)
