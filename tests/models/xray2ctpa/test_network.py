"""The U-Net and what stands around it: condition, places, normalised latents, sampling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hpcstab.models.xray2ctpa.blocks import ResidualBlock, SelfAttention, sinusoids
from hpcstab.models.xray2ctpa.network import LatentDiffusion, voxel_places
from hpcstab.models.xray2ctpa.sampling import sample
from hpcstab.models.xray2ctpa.unet import DenoisingUNet
from tests.models.xray2ctpa.making import make_network, make_task, training_batch


def moved(network: nn.Module) -> nn.Module:
    """With weights that let everything through: the last convolution starts at zero."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad and float(parameter.abs().max()) == 0.0:
                parameter.normal_(std=0.1)
    return network


def test_shapes_at_two_levels_with_attention_and_places() -> None:
    unet = DenoisingUNet(8, (16, 32), 64, num_places=3, attention=True)
    noisy = torch.randn(2, 8, 8, 8, 8)
    predicted = unet(noisy, torch.tensor([0.0, 999.0]), torch.randn(2, 64), torch.randn(2, 3, 8, 8, 8))
    assert predicted.shape == noisy.shape
    assert float(predicted.detach().abs().max()) == 0.0, "it begins by predicting zero"


def test_every_part_of_the_condition_changes_the_prediction() -> None:
    task = make_task("cured")
    network = make_network(task)
    moved(network)
    batch = training_batch(task, 0, 9)
    noisy, t = torch.randn(2, 4, 4, 4, 4), torch.tensor([3, 3])
    codes, places = network.code(batch["xray"]), batch["places"]
    with torch.no_grad():
        base = network(noisy, t, codes, places)
        others = {
            "t": network(noisy, t + 5, codes, places),
            "codes": network(noisy, t, -codes, places),
            "places": network(noisy, t, codes, places.flip(0)),
            "null": network(noisy, t, network.or_null(codes, torch.tensor([True, True])), places),
        }
    for name, other in others.items():
        assert float((other - base).abs().max()) > 1e-4, name


def test_samples_do_not_see_each_other() -> None:
    """GroupNorm, no BatchNorm: a batch gives what its samples give alone."""
    task = make_task("cured")
    network = make_network(task)
    moved(network)
    batch = training_batch(task, 0, 9, 17)
    noisy, t = torch.randn(3, 4, 4, 4, 4), torch.tensor([1, 7, 19])
    codes = network.code(batch["xray"])
    with torch.no_grad():
        together = network(noisy, t, codes, batch["places"])
        alone = [
            network(noisy[i : i + 1], t[i : i + 1], codes[i : i + 1], batch["places"][i : i + 1]) for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_places_are_those_of_the_voxels() -> None:
    """Two patches beside each other go on where the other ends."""
    corners = torch.tensor([[[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0]], [[0.0, -1.0, -1.0], [1.0, 0.0, 0.0]]])
    grid = voxel_places(corners, 4)
    assert grid.shape == (2, 3, 4, 4, 4)
    x = torch.cat([grid[0, 0], grid[1, 0]])[:, 2, 3]
    torch.testing.assert_close(x, torch.linspace(-0.875, 0.875, 8))
    assert torch.equal(grid[0, 2, 1, 1], torch.tensor([-0.875, -0.625, -0.375, -0.125]))


@pytest.mark.parametrize("variant", ["before", "before+latent_clamp", "before+standardized_latents"])
def test_decoding_undoes_the_normalisation(variant: str) -> None:
    task = make_task(variant)
    network = make_network(task).eval()
    volumes = training_batch(task, 0, 1)["volume"]
    with torch.no_grad():
        expected = network.autoencoder(volumes)[0]
        torch.testing.assert_close(network.decode(network.encode(volumes)), expected, rtol=1e-3, atol=1e-3)


def test_standardised_latents_have_mean_0_and_deviation_1() -> None:
    task = make_task("before+standardized_latents")
    network = make_network(task)
    latents = network.encode(training_batch(task, *range(len(task.dataset("train"))))["volume"])
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std((0, 2, 3, 4)), torch.ones(4), rtol=1e-3, atol=1e-3)
    assert float(network.latent_bound) == pytest.approx(float(latents.abs().max()))


def test_a_collapsed_codebook_leaves_latents_as_they_are() -> None:
    """The write-up's division by zero was guarded: below a range of 1e-6 nothing is divided."""
    task = make_task("before")
    network = make_network(task)
    fresh = LatentDiffusion(task._config.network, network.autoencoder, is_adversarial=False)  # type: ignore[arg-type]
    fresh.autoencoder.codebook.entries = torch.ones_like(network.autoencoder.codebook.entries)
    fresh.normalize(training_batch(task, 0)["volume"])
    assert (float(fresh.shift.abs().max()), float(fresh.scale.min()), float(fresh.scale.max())) == (0.0, 1.0, 1.0)


class Perfect(nn.Module):
    """Knows the latents that the noise hides."""

    def __init__(self, network: LatentDiffusion, truth: Tensor) -> None:
        super().__init__()
        self.schedule, self.truth = network.schedule, truth

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor, places: Tensor | None) -> Tensor:
        schedule = self.schedule
        t = (time * schedule.num_timesteps / 1000.0).round().long()
        signal, noise = (table[t].reshape(-1, 1, 1, 1, 1) for table in (schedule.signal, schedule.noise))
        return schedule.target(self.truth, (noisy - signal * self.truth) / noise, t)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("cured", ["network.sampling_steps=5"]),
        ("before", ["network.sampling_steps=5"]),
        ("cured", ["network.sampler=ddpm", "network.sampling_steps=20"]),
        ("cured", ["network.sampling_steps=3", "network.guidance=2.0"]),
    ],
)
def test_a_perfect_prediction_samples_the_truth(variant: str, settings: list[str]) -> None:
    task = make_task(variant, *settings)
    network = make_network(task)
    batch = training_batch(task, 0, 1)
    truth = network.encode(batch["volume"])
    network.unet = Perfect(network, truth)  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(truth.shape, generator=generator)
    with torch.no_grad():
        made = sample(network, network.code(batch["xray"]), batch["places"], noise, generator)
    torch.testing.assert_close(made, truth, rtol=1e-3, atol=1e-3)


def test_blocks_have_true_gradients() -> None:
    block, attention = ResidualBlock(2, 3, 4).double(), SelfAttention(2).double()
    values, embedding = (
        torch.randn(1, 2, 2, 2, 2).double().requires_grad_(),
        torch.randn(1, 4).double().requires_grad_(),
    )
    assert torch.autograd.gradcheck(block, (values, embedding))
    assert torch.autograd.gradcheck(attention, (values,))


def test_sinusoids_tell_all_steps_apart() -> None:
    codes = sinusoids(torch.arange(1000), 64)
    distances = torch.cdist(codes, codes) + torch.eye(1000) * 9
    assert float(distances.min()) > 0.05
