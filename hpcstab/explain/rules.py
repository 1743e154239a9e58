"""All rules in one place: which causes apply to a run, the surest first."""

from __future__ import annotations

from hpcstab.explain.causes import Cause, ranked
from hpcstab.explain.ends import END_RULES, causes_of_end, nothing_known
from hpcstab.explain.facts import Facts
from hpcstab.explain.numerics import NUMERIC_RULES


def causes_of(facts: Facts) -> tuple[Cause, ...]:
    """At least one; ``unknown`` says what was looked at."""
    rules = END_RULES if _is_stable(facts) else (*NUMERIC_RULES, *END_RULES)
    found = [cause for rule in rules if (cause := rule.apply(facts))]
    found += causes_of_end(facts)
    return ranked(found) or (nothing_known(facts),)


def _is_stable(facts: Facts) -> bool:
    """What a gate refused and a declared fault explains is no cause of anything."""
    return bool(facts.judgement and facts.judgement.get("stable"))
