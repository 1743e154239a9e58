"""The first stage: codebook, shapes, the fit before step 0, and how it is handed to the second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcstab.errors import ConfigError, DataError
from hpcstab.judgement import judge
from hpcstab.metrics import read_history
from hpcstab.models.xray2ctpa.autoencoder import Codebook, VectorQuantizedAutoencoder, commitment
from hpcstab.models.xray2ctpa.fitting import fit_autoencoder
from hpcstab.models.xray2ctpa.pretrained import load_autoencoder
from tests.conftest import MakeRun
from tests.models.xray2ctpa.making import make_config, make_network, make_task, training_batch


def test_compact_size_has_latents_of_8_at_a_quarter_of_the_edge() -> None:
    autoencoder = VectorQuantizedAutoencoder((4, 16, 32), 64, 8).eval()
    rebuilt, latents = autoencoder(torch.rand(1, 1, 32, 32, 32))
    assert (rebuilt.shape, latents.shape) == ((1, 1, 32, 32, 32), (1, 8, 8, 8, 8))


def test_codebook_gives_the_nearest_entry_and_the_gradient_of_the_input() -> None:
    codebook = Codebook(5, 3).eval()
    latents = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    chosen = codebook(latents)
    by_hand = torch.stack(
        [
            codebook.entries[(codebook.entries - vector).square().sum(1).argmin()]
            for vector in latents.detach().movedim(1, -1).reshape(-1, 3)
        ]
    )
    torch.testing.assert_close(chosen.detach().movedim(1, -1).reshape(-1, 3), by_hand)
    chosen.sum().backward()
    assert latents.grad is not None
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_codebook_follows_its_vectors_by_a_moving_average() -> None:
    """By hand: counts and sums move by a hundredth; what is used too little begins anew at some vector."""
    codebook = Codebook(2, 1)
    codebook.entries.copy_(torch.tensor([[0.0], [10.0]]))
    codebook.counts.copy_(torch.tensor([4.0, 1.0]))
    codebook.sums.copy_(torch.tensor([[0.0], [10.0]]))
    codebook.train()
    codebook(torch.full((1, 1, 2, 2, 2), 2.0))
    assert float(codebook.entries[0]) == pytest.approx((0.99 * 0.0 + 0.01 * 16.0) / (0.99 * 4 + 0.01 * 8))
    assert float(codebook.entries[1]) == 2.0, "0.99 uses a batch are too few: it begins anew"


def test_a_frozen_codebook_stays() -> None:
    autoencoder = VectorQuantizedAutoencoder((2, 4), 4, 3).freeze().train()
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    autoencoder(torch.rand(2, 1, 8, 8, 8))
    assert all(torch.equal(value, before[name]) for name, value in autoencoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_commitment_is_a_mean_square_that_moves_the_latents() -> None:
    codebook = Codebook(4, 3).double().eval()
    latents = torch.randn(1, 3, 2, 2, 2, dtype=torch.float64)
    expected = (latents - codebook.nearest(latents)).square().mean()
    torch.testing.assert_close(commitment(latents, codebook), expected)
    assert torch.autograd.gradcheck(lambda x: commitment(x, codebook), latents.clone().requires_grad_())


def test_the_fit_is_the_same_bit_for_bit_and_leaves_no_trace() -> None:
    keys, patches = make_config().network, torch.rand(6, 1, 16, 16, 16)
    torch.manual_seed(7)
    first = fit_autoencoder(keys, patches, 0)
    drawn = torch.rand(1)
    torch.manual_seed(8)
    second = fit_autoencoder(keys, patches, 0)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)


def test_all_variants_of_a_seed_have_the_same_autoencoder() -> None:
    states = [make_network(make_task(variant)).autoencoder.state_dict() for variant in ("before", "after", "cured")]
    for name, value in states[0].items():
        assert all(torch.equal(value, other[name]) for other in states[1:]), name


@pytest.mark.slow
def test_a_longer_fit_is_better() -> None:
    patches = torch.stack([item["volume"] for item in make_task().dataset("train").items])

    def error(num_steps: int) -> float:
        keys = make_config("before", "tiny", f"network.fit_steps={num_steps}").network
        with torch.no_grad():
            return float((fit_autoencoder(keys, patches, 0)(patches)[0] - patches).abs().mean())

    assert error(40) < 0.8 * error(2)


@pytest.mark.slow
def test_a_pretrained_autoencoder_is_that_of_its_run(train_run: MakeRun) -> None:
    """Stage 1 by the real trainer, then stage 2 on top of it."""
    first = train_run("xray2ctpa", "cured", settings=["network.stage=autoencoder"])
    history = list(read_history(first.metrics_csv).values())
    assert {row["loss_denoising"] for row in history} == {"0.0"}
    assert all(float(row["loss_reconstruction"]) > 0 for row in history)
    assert judge(first).finite.answer == "yes"
    settings = ["network.autoencoder=pretrained", f"network.checkpoint={first.path}", "trainer.max_steps=2"]
    run = train_run("xray2ctpa", "cured", settings=settings)
    assert judge(run).finite.answer == "yes"
    network = make_network(make_task("cured", *settings))
    weights = torch.load(max(first.checkpoints.glob("step_*")) / "state.pt", weights_only=True)["network"]
    assert all(torch.equal(value, weights[name]) for name, value in network.autoencoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (None, None, ConfigError, "names none"),
        ("absent", None, DataError, "there is no state.pt in it"),
        ("state.pt", b"no checkpoint", DataError, "cannot be read as a checkpoint"),
    ],
)
def test_a_checkpoint_that_is_none(
    tmp_path: Path, name: str | None, content: bytes | None, error: type[Exception], message: str
) -> None:
    settings = ["network.autoencoder=pretrained"]
    if name is not None:
        settings.append(f"network.checkpoint={tmp_path / name}")
    if content is not None and name is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        load_autoencoder(make_config("before", "tiny", *settings).network)


def test_another_architecture_is_named(tmp_path: Path) -> None:
    torch.save({"network": VectorQuantizedAutoencoder((2, 4), 4, 3).state_dict()}, tmp_path / "state.pt")
    settings = ["network.autoencoder=pretrained", f"network.checkpoint={tmp_path}"]
    with pytest.raises(ConfigError, match=r"is no autoencoder of network\.channels"):
        load_autoencoder(make_config("before", "tiny", *settings).network)


def test_only_what_learns_is_trained_in_stage_2() -> None:
    task = make_task("phased")
    network = make_network(task)
    names = {name.split(".")[0] for name, value in network.named_parameters() if value.requires_grad}
    assert names == {"null_condition", "unet", "discriminator"}
    assert {*task.optimizers(network)} == {"network", "discriminator"}
    assert {*make_task("before").optimizers(make_network(make_task("before")))} == {"network"}
    batch = training_batch(task, 0, 1)
    assert not network.encode(batch["volume"]).requires_grad
