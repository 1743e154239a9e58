"""Which runs a campaign is made of."""

from __future__ import annotations

import pytest

from hpcstab.campaign import load_campaign, parse_names, parse_seeds, plan
from hpcstab.config import yaml_names
from hpcstab.errors import ConfigError


def test_runs_are_ordered_by_seed_so_that_pairs_stand_together() -> None:
    planned = plan(["swae3d"], ["before", "after"], [0, 1], "tiny")
    assert [(run.resolved.label, run.seed) for run in planned] == [
        ("before", 0),
        ("after", 0),
        ("before", 1),
        ("after", 1),
    ]


def test_a_variant_twice_is_refused_in_whatever_spelling() -> None:
    with pytest.raises(ConfigError, match="asked for twice"):
        plan(["swae3d"], ["before+clip+lower_lr", "before+lower_lr+clip"], [0], "tiny")


@pytest.mark.parametrize(("text", "seeds"), [("0", [0]), ("0-2", [0, 1, 2]), ("3,0-1", [3, 0, 1])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["-1", "0--2", "2-0", "a", "", "1,", "0-2,1", "0-99999", "1\n", "$(id)"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(ConfigError, match="seeds"):
        parse_seeds(text)


def test_names() -> None:
    assert parse_names("before, after", "--variants") == ["before", "after"]
    with pytest.raises(ConfigError, match="empty"):
        parse_names("before,,after", "--variants")


def test_too_many_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most"):
        plan(["swae3d"], ["before", "after"], list(range(6000)), "tiny")


@pytest.mark.parametrize("name", yaml_names("jobs/campaigns"))
def test_every_committed_campaign_plans(name: str) -> None:
    campaign = load_campaign(name)
    planned = plan(
        list(campaign.models), list(campaign.variants), parse_seeds(campaign.seeds), campaign.scale or "quick"
    )
    assert planned
