"""The config of a rerun: the parent's own, to the letter, with fixes and overrides added in canonical order."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpcstab.config import Branched, Experiment, branch, load_experiment, parse_overrides, read_yaml_mapping, resolve
from hpcstab.errors import ConfigError
from tests.conftest import MakeRun

SWAE = load_experiment("swae3d")
VARIANTS = ["before", "after", "cured", "before+lower_lr+clip", "after-clip"]


@pytest.fixture
def parts(make_run: MakeRun) -> Any:
    """``parts("after", ["optimizer.lr=1e-3"])``: run.json and config.yaml of a run."""

    def make(variant: str, settings: list[str] | None = None) -> tuple[dict[str, Any], dict[str, Any], Path]:
        run = make_run(variant=variant, settings=settings)
        return json.loads(run.run_json.read_text()), read_yaml_mapping(run.config_yaml), run.config_yaml

    return make


def branched(
    parts: tuple[Mapping[str, Any], Mapping[str, Any], Path], *added: str, settings: tuple[str, ...] = (),
    experiment: Experiment | None = SWAE,
) -> Branched:  # fmt: skip
    return branch(*parts, added, parse_overrides(list(settings)), experiment)


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_change_it_is_the_parents(parts: Any, variant: str) -> None:
    expected = resolve(SWAE, variant, "tiny", parse_overrides(["optimizer.eps=1e-6"]))
    found = branched(parts(variant, ["optimizer.eps=1e-6"]), experiment=None).resolved
    assert found == replace(expected, horizon_steps=6)


@pytest.mark.parametrize(
    ("variant", "added", "whole"),
    [
        ("before", ("clip", "lower_lr"), "before+clip+lower_lr"),
        ("before+batchnorm", ("gdn_bounded",), "before+batchnorm+gdn_bounded"),
        ("before+hardened", ("clip",), "before+clip+hardened"),
        ("after", ("hardened",), "after+hardened"),
        ("after-clip", ("clip",), "after"),
        ("cured-hardened", ("hardened",), "cured"),
    ],
)
def test_added_fixes_give_what_the_whole_expression_gives(
    parts: Any, variant: str, added: tuple[str, ...], whole: str
) -> None:
    assert branched(parts(variant), *added).resolved == resolve(SWAE, whole, "tiny")


def test_of_two_fixes_on_one_key_the_later_in_yaml_order_wins_whoever_brings_it(parts: Any) -> None:
    with pytest.raises(ConfigError, match="--with batchnorm: changes nothing in swae3d/before"):
        branched(parts("before+gdn_bounded"), "batchnorm")


def test_settings_come_last_and_reach_into_added_guards(parts: Any) -> None:
    settings = ("stability.guards.ladder.max_backoffs=7", "optimizer.lr=0.5")
    found = branched(parts("before", ["optimizer.lr=0.25"]), "hardened", settings=settings).resolved
    assert found == resolve(SWAE, "before+hardened", "tiny", parse_overrides(list(settings)))


def test_a_setting_is_the_later_word_on_all_that_it_holds(parts: Any) -> None:
    found = branched(parts("cured", ["stability.guards.ladder.max_backoffs=7"]), settings=("stability.guards=none",))
    assert found.resolved == resolve(SWAE, "cured", "tiny", parse_overrides(["stability.guards=none"]))


def test_an_added_fix_is_the_later_word_on_a_key_of_the_parents_settings(parts: Any) -> None:
    found = branched(parts("before", ["optimizer.lr=0.25", "optimizer.eps=1e-6"]), "lower_lr")
    assert found.dropped == ("optimizer.lr",)
    assert found.resolved.config.optimizer.lr == 1e-4
    assert found.resolved.overrides == (("optimizer.eps", 1e-6),)


def test_what_the_parent_trained_is_read_from_its_folder_alone(parts: Any) -> None:
    """The YAML has another base and other fixes by now: only the added fix is its own."""
    file = copy.deepcopy(SWAE.file)
    base = {**file.base, "optimizer": {**file.base["optimizer"], "eps": 0.125}}
    lower_lr = file.fixes["lower_lr"].model_copy(update={"set": {"optimizer.lr": 0.03}})
    fixes = {name: fix for name, fix in file.fixes.items() if name != "batchnorm"} | {"lower_lr": lower_lr}
    changed = replace(SWAE, file=file.model_copy(update={"base": base, "fixes": fixes, "variants": {}}))
    found = branched(parts("before+batchnorm"), "lower_lr", experiment=changed).resolved
    assert found.variant.name == "before+batchnorm+lower_lr"
    assert (found.config.optimizer.lr, found.config.optimizer.eps) == (0.03, 1e-8)


@pytest.mark.parametrize(
    ("added", "settings", "message"),
    [
        (("clpi",), (), r"--with: swae3d has no fix 'clpi', did you mean 'clip'\? There are: .*gdn_bounded"),
        (("clip",), (), "--with clip: the parent has this fix already; it has batchnorm, lower_lr"),
        (("hardened", "hardened"), (), "--with hardened stands there twice"),
        ((), ("optimizer.lrr=1",), r"--set: unknown key 'optimizer.lrr', did you mean 'optimizer.lr'\?"),
        ((), ("optimizer.lr=-1",), r"'optimizer.lr': got -1 \(int\), but input should be greater than 0"),
    ],
)
def test_wrong_requests(parts: Any, added: tuple[str, ...], settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        branched(parts("after"), *added, settings=settings)
