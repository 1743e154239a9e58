"""The network of vae2d in every round: shapes, sizes counted by hand, where it starts, what each part does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from hpcstab.config import load_experiment, resolve
from hpcstab.models.vae2d.config import Config, Network
from hpcstab.models.vae2d.network import KLAutoencoder, SelfAttention, UpBlock

ROUNDS = ["round0", "before", "round2", "round3", "round4", "round5", "after", "cured"]


def keys(variant: str, scale: str = "tiny", **changes: Any) -> Network:
    config = resolve(load_experiment("vae2d"), variant, scale).config
    assert isinstance(config, Config)
    return config.network.model_copy(update=changes)


def build(network: Network, seed: int = 0) -> KLAutoencoder:
    torch.manual_seed(seed)
    return KLAutoencoder(network)


def convolution(num_in: int, num_out: int, kernel: int) -> int:
    return num_in * num_out * kernel**2 + num_out


def size_by_hand(
    widths: list[int], latents: int, *, norm_skips: bool, transposed: bool, convs: int, attention: bool
) -> int:
    """Parameters as the research notes on the write-up describe the blocks."""
    total = 2 * convolution(widths[-1], latents, 1) + convolution(latents, widths[-1], 1) + convolution(widths[0], 1, 3)
    for num_in, num_out in itertools.pairwise([1, *widths]):
        total += convolution(num_in, num_out, 4) + 2 * num_out
        total += convolution(num_in, num_out, 1) + 2 * num_out * norm_skips
    for num_in, num_out in itertools.pairwise([*widths[::-1], widths[0]]):
        total += convolution(num_in, num_out, 4 if transposed else 3) + 2 * num_out
        total += (convs - 1) * (convolution(num_out, num_out, 3) + 2 * num_out)
        total += convolution(num_in, num_out, 1) + 2 * num_out * norm_skips
    if attention:
        total += 2 * (2 * widths[-2] + 4 * convolution(widths[-2], widths[-2], 1))
    return total


@pytest.mark.parametrize(
    ("variant", "latents", "norm_skips", "transposed", "convs", "attention", "count"),
    [
        ("round0", 64, False, True, 1, False, 6_041_921),
        ("before", 16, True, True, 1, False, 5_971_105),
        ("round2", 16, True, True, 1, False, 5_971_105),
        ("round3", 16, True, False, 1, False, 4_745_377),
        ("round4", 16, True, False, 1, False, 4_745_377),
        ("round5", 8, True, False, 1, False, 4_733_073),
        ("after", 8, True, False, 2, True, 6_054_545),
        ("cured", 16, True, False, 1, False, 4_745_377),
    ],
)
def test_parameters_are_those_of_the_described_blocks(
    variant: str, latents: int, norm_skips: bool, transposed: bool, convs: int, attention: bool, count: int
) -> None:
    network = keys(variant, "full")
    assert network.channels == (32, 64, 128, 256, 512)
    found = sum(parameter.numel() for parameter in build(network).parameters())
    by_hand = size_by_hand(
        list(network.channels), latents, norm_skips=norm_skips, transposed=transposed, convs=convs, attention=attention
    )
    assert found == by_hand == count


@pytest.mark.parametrize("variant", ROUNDS)
def test_shapes_and_every_parameter_gets_a_gradient(variant: str) -> None:
    network = build(keys(variant))
    images = torch.rand(2, 1, 32, 32)
    rebuilt, posterior = network(images)
    assert rebuilt.shape == images.shape
    assert bool(((rebuilt >= 0.0) & (rebuilt <= 1.0)).all())
    latents = keys(variant).latent_channels
    assert posterior.mean.shape == posterior.logvar.shape == (2, latents, 2, 2)
    drawn = network.decode(posterior.sample(torch.Generator().manual_seed(0)))
    (drawn.square().mean() + posterior.logvar.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_latents_of_the_write_up() -> None:
    """(B, 16, 8, 8) at 256x256 after round 1."""
    with torch.no_grad():
        posterior = build(keys("before", "tiny", channels=(8, 8, 8, 8, 8))).encode(torch.rand(1, 1, 256, 256))
    assert posterior.mean.shape == (1, 16, 8, 8)


def test_where_the_heads_start() -> None:
    """By fan_out log-variances start at tens; by fan_in at a few; near zero at a tenth: at the full width, 64x64."""
    images = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    largest = {}
    for name, changes in {
        "fan_out": {},
        "fan_in": {"init": "kaiming_fan_in"},
        "near_zero": {"head_init": "near_zero"},
    }.items():
        with torch.no_grad():
            largest[name] = float(build(keys("before", "full", **changes)).encode(images).logvar.abs().max())
    assert largest["fan_out"] > 15.0
    assert 1.0 < largest["fan_in"] < 10.0
    assert largest["near_zero"] < 0.5


def test_fan_out_draws_the_heads_as_the_write_up_found_them() -> None:
    head = build(keys("before", "full")).encoder.to_logvar
    assert float(head.weight.detach().std()) == pytest.approx((2 / 16) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("logvar", "bound", "alive"), [("raw", None, True), ("clamp", 10.0, False), ("bounded", 10.0, True)]
)
def test_bounds_of_the_log_variance(logvar: str, bound: float | None, alive: bool) -> None:
    """The clamp has no gradient where it cuts; the bound has one everywhere."""
    network = build(keys("before", "tiny", logvar=logvar))
    with torch.no_grad():
        network.encoder.to_logvar.bias.fill_(40.0)  # type: ignore[union-attr]
        network.encoder.to_logvar.weight.zero_()
    posterior = network.encode(torch.rand(2, 1, 32, 32))
    expected = 40.0 if bound is None else bound
    assert float(posterior.logvar.detach().max()) == pytest.approx(expected, rel=1e-2)
    posterior.logvar.sum().backward()
    gradient = network.encoder.to_logvar.bias.grad
    assert gradient is not None
    assert bool((gradient > 0).all()) == alive
    assert posterior.num_cut == (posterior.logvar.numel() if logvar == "clamp" else None)


def test_the_transposed_skip_reaches_one_pixel_of_four() -> None:
    """What draws the grid: elsewhere the skip is its bias, whatever the input; the main branch reaches all alike."""
    block = UpBlock(4, 4, keys("round0"))
    first, second = torch.randn(1, 4, 6, 6), torch.randn(1, 4, 6, 6)
    differs = (block.skip(first) != block.skip(second)).any(dim=1)[0]
    assert int(differs.sum()) == 36
    assert bool(differs[::2, ::2].all())
    taps = functional.conv_transpose2d(torch.ones(1, 1, 6, 6), torch.ones(1, 1, 4, 4), stride=2, padding=1)[0, 0]
    assert set(taps[1:-1, 1:-1].unique().tolist()) == {4.0}


def test_attention_is_the_definition_and_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8).double()
    features = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    query, key, value = layer.query_key_value(layer.norm(features)).flatten(2).chunk(3, dim=1)
    attended = torch.empty_like(value)
    for sample in range(2):
        for position in range(9):
            weights = (key[sample].T @ query[sample][:, position] * 8**-0.5).softmax(0)
            attended[sample][:, position] = value[sample] @ weights
    expected = features + layer.projection(attended.reshape(features.shape))
    torch.testing.assert_close(layer(features), expected)

    network = build(keys("after"))
    attention = next(module for module in network.modules() if isinstance(module, SelfAttention))
    some = torch.randn(1, 8, 4, 4)
    assert torch.equal(attention(some), some)


def test_samples_follow_the_posterior() -> None:
    posterior = build(keys("before")).encode(torch.rand(1, 1, 32, 32))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([posterior.sample(generator) for _ in range(2000)])
        standardised = (draws - posterior.mean) / (0.5 * posterior.logvar).exp()
    assert standardised.mean(0).abs().max() < 0.15
    assert (standardised.std(0) - 1.0).abs().max() < 0.1


def test_modules_hold_no_state_twice() -> None:
    """An activation that is shared inside a block owns no parameters."""
    names = [name for name, _ in build(keys("after")).named_parameters()]
    assert len(names) == len(set(names))
    assert not any(
        isinstance(module, nn.LeakyReLU) and list(module.parameters()) for module in build(keys("after")).modules()
    )
