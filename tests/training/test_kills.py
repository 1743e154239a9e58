"""kill -9 at random instants, a quarter of them during a save; ``make torture`` has ten times as many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.torture.kill_training import torture


@pytest.mark.slow
def test_whenever_a_training_is_killed_it_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    tally = torture(20, tmp_path, seed=1)
    assert tally.problems == []
    assert tally.phases["during a save"] >= 5
    assert tally.phases.total() == 20
