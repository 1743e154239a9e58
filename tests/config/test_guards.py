"""The guards' section: words and numbers, and errors that name the key."""

from __future__ import annotations

import pytest

from hpcstab.config import load_experiment, parse_overrides, read_yaml_mapping, resolve
from hpcstab.config.guards import DEFAULT
from hpcstab.errors import ConfigError
from hpcstab.execute import read_config
from tests.conftest import MakeRun


def guards_of(variant: str, *settings: str) -> object:
    return resolve(load_experiment("swae3d"), variant, "tiny", parse_overrides(list(settings))).config.stability.guards


def test_default_stands_for_its_numbers_in_a_run_folder(make_run: MakeRun) -> None:
    run = make_run(variant="cured")
    assert read_yaml_mapping(run.config_yaml)["stability"]["guards"] == DEFAULT
    assert read_config(run)[1].stability.guards == guards_of("cured")
    plain = make_run(variant="before")
    assert read_yaml_mapping(plain.config_yaml)["stability"]["guards"] == "none"
    assert read_config(plain)[1].stability.guards is None


def test_one_number_of_the_default_can_be_set() -> None:
    assert str(guards_of("cured")) == "default"
    changed = guards_of("cured", "stability.guards.ladder.max_rollbacks=5", "stability.guards.headroom=null")
    assert str(changed) == "default with headroom=None, ladder.max_rollbacks=5"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stability.guards=defualt", "got 'defualt'; allowed are none, default, or a mapping with streak"),
        ("stability.guards.ladder.max_rollback=1", r"unknown key .*did you mean 'stability\.guards\.ladder"),
        ("stability.guards.ladder.lr_factor=1.5", r"stability\.guards\.ladder\.lr_factor': got 1\.5"),
        ("stability.guards.loss_spike.min_updates=500", "never fit into a window of 128"),
        ("stability.guards={streak: {max_skips: 3}}", r"'stability\.guards\.loss_spike' is missing"),
    ],
)
def test_mistakes_are_explained(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        guards_of("cured", setting)
