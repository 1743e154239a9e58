"""All rules in one place: which causes apply to a run, the surest first."""

from __future__ import annotations

from hpcstab.explain.causes import Cause, ranked
from hpcstab.explain.ends import END_RULES, causes_of_end, nothing_known
from hpcstab.explain.facts import Facts
from hpcstab.explain.numerics import NUMERIC_RULES, USE_RULES


def causes_of(facts: Facts) -> tuple[Cause, ...]:
    """At least one; ``unknown`` says what was looked at."""
    rules = (*(() if _numbers_are_fine(facts) else NUMERIC_RULES), *USE_RULES, *END_RULES)
    found = [cause for rule in rules if (cause := rule.apply(facts))]
    found += causes_of_end(facts)
    return ranked(found) or (nothing_known(facts),)


def _numbers_are_fine(facts: Facts) -> bool:
    """It completed, finite and unmasked: a spike that was refused, or a declared fault, is no cause of anything."""
    answers = (facts.answer_of("finite"), facts.answer_of("unmasked"))
    return facts.state.state == "completed" and answers == ("yes", "yes")
