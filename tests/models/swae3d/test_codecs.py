"""SPERR, SZ3 and zfp at a budget: they keep it, and use it. Skipped where imagecodecs is not installed."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.config import load_experiment, resolve
from hpcstab.data.functions import SineProduct
from hpcstab.models.swae3d import codecs
from hpcstab.models.swae3d.task import Task

pytestmark = pytest.mark.skipif(not codecs.available(), reason="imagecodecs is not installed (extra codecs)")
VOLUME = SineProduct((2, 2, 2)).volume(40)


def psnr(volume: np.ndarray, rebuilt: np.ndarray) -> float:  # type: ignore[type-arg]
    return float(20 * np.log10(np.ptp(volume)) - 10 * np.log10(np.square(volume.astype(float) - rebuilt).mean()))


@pytest.mark.parametrize(("codec", "measured_db"), [("sperr", 39.4), ("sz3", 35.8), ("zfp", 26.2)])
def test_figures_at_32_to_1_are_those_that_were_measured_before(codec: str, measured_db: float) -> None:
    """On sin(4 pi x) sin(4 pi y) sin(4 pi z), 40^3, within 8,000 bytes; SZ3's there is the better of two predictors."""
    rebuilt = codecs.rebuild(codec, VOLUME, VOLUME.nbytes // 32)
    assert rebuilt is not None
    assert rebuilt.shape == VOLUME.shape
    assert psnr(VOLUME, rebuilt) == pytest.approx(measured_db, abs=2.0)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_the_budget_is_kept_with_the_header_counted(codec: str) -> None:
    for mode in codecs._modes(codec):
        code = codecs._finest(mode, VOLUME, 8000)
        assert code is not None
        assert 7000 < len(code) <= 8000
    assert codecs.rebuild(codec, VOLUME, 8) is None


def test_they_stand_beside_block_pca_as_references() -> None:
    config = resolve(load_experiment("swae3d"), "before", "tiny").config
    task = Task(config, seed=0)  # type: ignore[arg-type]
    names = [(baseline.name, baseline.role) for baseline in task.baselines()]
    assert names[:2] == [("mean_predictor", "floor"), ("block_pca_4", "reference")]
    assert ("sperr", "reference") in names
    assert task.data_facts()["codecs"] == codecs.version()
