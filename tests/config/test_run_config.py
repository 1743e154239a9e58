"""Run folders of earlier versions: their configs lack what is new, and mean what their version did."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hpcstab.checkpoint import read_checkpoint, write_checkpoint
from hpcstab.config import read_run_config
from hpcstab.config.run_config import ADDED, RENAMED
from hpcstab.errors import ConfigError
from hpcstab.execute import execute, read_config, replay
from hpcstab.rundir import RunDir, begin_attempt
from tests.conftest import MakeRun
from tests.rerun.conftest import plan


def make_old(run: RunDir) -> RunDir:
    """Take from the run's config.yaml what versions before did not write."""
    values = yaml.safe_load(run.config_yaml.read_text())
    run.config_yaml.write_text(yaml.safe_dump(as_before(values["model"], values), sort_keys=False))
    return run


def as_before(model: str, values: dict[str, Any]) -> dict[str, Any]:
    """Where the section is there a key that no config has any more fails here."""
    for added in (ADDED[None], ADDED.get(model, {})):
        for key in added:
            *sections, name = key.split(".")
            section: Any = values
            for part in sections:
                section = section[part] if isinstance(section, dict) else section
            if isinstance(section, dict):
                del section[name]
    for before, key in RENAMED.get(model, {}).items():
        assert before.rpartition(".")[0] == key.rpartition(".")[0] == "data"
        values["data"][before.rpartition(".")[2]] = values["data"].pop(key.rpartition(".")[2])
    return values


def test_a_capsule_of_an_earlier_version_replays(train_run: MakeRun) -> None:
    (folder,) = train_run("xray2ctpa", "before").capsules.iterdir()
    state, facts = read_checkpoint(folder)
    write_checkpoint(folder, state, {**facts, "config": as_before("xray2ctpa", facts["config"])})
    assert "samples_averaged" not in read_checkpoint(folder)[1]["config"]["network"]
    assert replay(folder).replay.same is True


@pytest.mark.parametrize("model", [model or "swae3d" for model in ADDED])
def test_a_run_of_an_earlier_version_goes_on(make_run: MakeRun, model: str) -> None:
    run = make_old(make_run(model, "cured"))
    config = read_config(run)[1]
    guards = config.stability.guards
    assert guards is not None
    assert guards.ladder.recover_after == 0
    if model == "xray2ctpa":
        assert config.model_dump()["network"]["samples_averaged"] == 1
    assert execute(run, begin_attempt(run, {}), iter([None, None, "SIGUSR2"]).__next__).state == "stopped"
    assert execute(run, begin_attempt(run, {})).state == "completed"
    assert "nothing is changed" in " ".join(plan(run, "0").told)


def test_nothing_is_made_up_beside_it(make_run: MakeRun) -> None:
    run = make_run("swae3d", "before")
    assert read_run_config(run.config_yaml) == yaml.safe_load(run.config_yaml.read_text()), "guards are off, none added"
    values = yaml.safe_load(run.config_yaml.read_text())
    del values["trainer"]["epochs"]
    run.config_yaml.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"'trainer\.epochs' is missing"):
        read_config(run)
