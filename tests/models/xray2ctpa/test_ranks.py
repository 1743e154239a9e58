"""One rank and two at the same batch: GroupNorm, mean losses and draws by sample leave nothing but rounding."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.xray2ctpa.two_ranks import train
from tests.two_processes import lines_of_two

LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-4, 2e-3
"""Relative; of a weight: of its norm, after six updates of Adam, which divides rounding by rounding where gradients
are near zero."""


@pytest.mark.slow
def test_one_and_two_ranks_agree(tmp_path: Path) -> None:
    ranks = lines_of_two("tests.models.xray2ctpa.two_ranks", tmp_path / "meeting", str(tmp_path / "two"))
    for first, second in zip(*ranks, strict=True):
        assert first["parameters"] == second["parameters"], "both ranks have the same network"
        alone = train(tmp_path / "one", first["variant"])
        assert first["state"] == alone["state"] == "completed"
        assert first["losses"] == pytest.approx(alone["losses"], rel=LOSS_TOLERANCE)
        for name, (total, norm) in alone["parameters"].items():
            assert first["parameters"][name][1] == pytest.approx(norm, rel=WEIGHT_TOLERANCE, abs=1e-3), name
            assert first["parameters"][name][0] == pytest.approx(total, abs=WEIGHT_TOLERANCE * max(1.0, 10 * norm)), (
                name
            )
