"""Strictness: unknown keys, wrong types, overrides, and what the signature hashes."""

from __future__ import annotations

import pytest

from hpcstab.config import load_experiment, overridden, parse_overrides, resolve
from hpcstab.errors import ConfigError

SWAE3D = load_experiment("swae3d")


def resolved(*settings: str, variant: str = "before", scale: str = "tiny"):  # type: ignore[no-untyped-def]
    return resolve(SWAE3D, variant, scale, parse_overrides(list(settings)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'"),
        ("optimizer.lrr=1", "did you mean 'optimizer.lr'"),
        ("optimizer.lr=fast", r"'optimizer.lr': got 'fast' \(str\)"),
        ("optimizer.lr=-1", "greater than 0"),
        ("optimizer.lr=.nan", "finite"),
        ("trainer.epochs=1.5", "valid integer"),
        ("trainer.epochs=true", "valid integer"),
        ("precision.tf32=yes", "valid boolean"),
        ("network.channels=[4, x]", r"network.channels.1"),
        ("network.normalization=layernorm", "'gdn', 'batchnorm' or 'gdn_bounded'"),
        ("trainer.evaluate_every={steps: 3, epochs: 1}", "exactly one of the two"),
        ("trainer.evaluate_every={steps: 0}", "longer than nothing"),
        ("losses.phases={kl: {start: {steps: 1}, ramp: {steps: 1}}}", "is no loss term"),
        ("optimizer={name: adam}", "key 'optimizer.lr' is missing"),
        ("optimizer.lr=[1", "line 1"),
        ("optimizer.lr", "not of the form key=value"),
        ("optimizer.lr=1\n", "control character"),
    ],
)
def test_wrong_overrides_are_explained(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(setting)
    assert caught.value.exit_code == 2


def test_guards_need_a_closed_gate() -> None:
    with pytest.raises(ConfigError, match=r"guards need stability\.gate closed, it is open"):
        resolved("stability.guards=default")


def test_an_override_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        resolved("optimizer.lr=1", "optimizer.lr=2")


def test_override_is_a_number_in_every_spelling() -> None:
    for text in ("1e-3", "0.001", "1.0e-3", "1E-3"):
        assert resolved(f"optimizer.lr={text}").config.optimizer.lr == 0.001


def test_label_names_overrides() -> None:
    assert resolved("optimizer.lr=1e-3", variant="after").label == "after{optimizer.lr=0.001}"
    assert resolved(variant="after").label == "after"


def test_signature_hashes_what_changes_numbers_and_nothing_else() -> None:
    base = resolved().signature
    assert resolved("data.num_workers=2").signature == base
    assert resolved("trainer.probe_every={steps: 1}").signature == base
    assert resolved("optimizer.lr=1e-3").signature == base  # the value that it has
    assert resolved("optimizer.lr=2e-3").signature != base
    assert resolved("trainer.evaluate_every={steps: 1}").signature != base  # an evaluation can end a run


def test_horizon_follows_the_scale() -> None:
    assert resolved(scale="tiny").horizon_steps == SWAE3D.file.scales["tiny"]["compare.horizon_steps"]
    assert resolved(scale="full").horizon_steps == SWAE3D.file.compare.horizon_steps


def test_two_fixes_on_one_key_are_reported_and_the_later_wins() -> None:
    run = resolved(variant="before+gdn_bounded+batchnorm")
    assert run.config.network.normalization == "gdn_bounded"  # type: ignore[attr-defined]
    assert overridden(SWAE3D, run.variant.fixes) == [("network.normalization", "batchnorm", "gdn_bounded")]
