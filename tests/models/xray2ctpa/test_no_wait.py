"""No step of any variant waits for the device, with all its guards and with a discriminator."""

from __future__ import annotations

import pytest

from hpcstab.execute import load_task, read_config
from hpcstab.training.build import build_trainer
from tests.conftest import MakeRun
from tests.stability.test_no_wait import assert_waits_for_nothing

ALL_TERMS = ["losses.phases={}", "losses.skip_auxiliary_under_amp=false"]


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("phased", ALL_TERMS),
        pytest.param("after", [], marks=pytest.mark.slow),
        pytest.param("before", [], marks=pytest.mark.slow),
        pytest.param("cured", [], marks=pytest.mark.slow),
        pytest.param("cured", ["network.stage=autoencoder"], marks=pytest.mark.slow),
    ],
)
def test_a_step_waits_for_nothing(make_run: MakeRun, variant: str, settings: list[str]) -> None:
    run = make_run("xray2ctpa", variant, settings=settings)
    model, config = read_config(run)
    assert_waits_for_nothing(build_trainer(load_task(model, config, 0, "test"), config, run, 0, 1, "psnr"))
