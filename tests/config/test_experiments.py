"""Every committed YAML, as a whole: reads, resolves, and every fix changes exactly the keys it says."""

from __future__ import annotations

import pytest

from hpcstab.config import Experiment, distinct_variants, leaf_keys, load_experiment, resolve, variant_names
from tests.conftest import MODELS, with_one_change


@pytest.fixture(params=MODELS)
def experiment(request: pytest.FixtureRequest) -> Experiment:
    return load_experiment(request.param)


def test_has_the_variants_and_scales_that_every_model_has(experiment: Experiment) -> None:
    assert {"before", "after", "cured"} <= set(variant_names(experiment))
    assert {"full", "small", "quick", "tiny"} <= set(experiment.file.scales)


def test_every_variant_resolves_at_every_scale(experiment: Experiment) -> None:
    signatures = {
        resolve(experiment, variant, scale).signature
        for variant in variant_names(experiment)
        for scale in experiment.file.scales
    }
    assert len(signatures) == len(distinct_variants(experiment)) * len(experiment.file.scales)


def test_every_fix_changes_exactly_the_keys_it_says(experiment: Experiment) -> None:
    base = dict(leaf_keys(resolve(experiment, "before", "full").config))
    for name, fix in experiment.file.fixes.items():
        fixed = dict(leaf_keys(resolve(experiment, with_one_change(experiment, name), "full").config))
        changed = {key for key in base.keys() | fixed.keys() if base.get(key) != fixed.get(key)}
        for key in changed:
            assert any(f"{key}.".startswith(f"{said}.") for said in fix.set), f"fix {name} also changes {key}"
        for said in fix.set:
            assert any(f"{key}.".startswith(f"{said}.") for key in changed), f"fix {name} does not change {said}"


def test_every_fix_of_after_can_be_left_out(experiment: Experiment) -> None:
    for fix in experiment.file.variants["after"]:
        assert fix not in resolve(experiment, f"after-{fix}", "tiny").variant.fixes


def test_upkeep_fixes_alone_leave_the_signature(experiment: Experiment) -> None:
    base = resolve(experiment, "before", "tiny").signature
    for name, fix in experiment.file.fixes.items():
        same = resolve(experiment, with_one_change(experiment, name), "tiny").signature == base
        assert same == (fix.kind == "upkeep"), f"fix {name} of kind {fix.kind}"


def test_flaws_are_in_no_named_variant_but_before(experiment: Experiment) -> None:
    flaws = {name for name, fix in experiment.file.fixes.items() if fix.kind == "flaw"}
    for variant in ("after", "cured"):
        assert not flaws & set(experiment.file.variants[variant])


def test_full_swae3d_is_the_write_up() -> None:
    """The numbers of the write-up's 'Current Training Configuration', by hand."""
    after = resolve(load_experiment("swae3d"), "after+repeated", "full").config
    values = dict(leaf_keys(after))
    assert values["data.wave_numbers"] == (2, 3, 4, 5, 6)
    assert (values["data.resolution"], values["network.block_size"], values["network.latent_dim"]) == (40, 8, 16)
    assert values["network.channels"] == (32, 64, 128)
    assert (values["data.num_samples"], values["data.train_split"], values["data.batch_size"]) == (500, 0.8, 16)
    assert (values["trainer.epochs"], values["trainer.max_steps"]) == (200, None)
    assert (values["optimizer.lr"], values["losses.weights.sliced_wasserstein"]) == (1e-4, 1.0)
    assert (values["stability.clip_grad_norm"], values["losses.num_projections"]) == (1.0, 50)
    before = dict(leaf_keys(resolve(load_experiment("swae3d"), "before", "full").config))
    assert (before["optimizer.lr"], before["losses.weights.sliced_wasserstein"]) == (1e-3, 10.0)
    assert (before["data.batch_size"], before["stability.clip_grad_norm"]) == (32, None)
