"""The SWAE 3D network: published sizes, GDN against a naive reference, what breaks which normalization."""

from typing import get_args

import pytest
import torch
from torch import Tensor

from hpcstab.errors import ConfigError
from hpcstab.models.swae3d.network import (
    BoundedGeneralizedDivisiveNormalization3d,
    ConvInit,
    GeneralizedDivisiveNormalization3d,
    Normalization,
    SlicedWassersteinAutoencoder,
)

TINY = {"latent_dim": 4, "channels": (4, 8, 8)}


def naive_gdn(features: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> Tensor:
    """The definition, one voxel and channel at a time, in float64."""
    x, beta, gamma = features.double(), beta.double(), gamma.double()
    result = torch.empty_like(x)
    batch, channels, *_ = x.shape
    for b in range(batch):
        for d, h, w in torch.cartesian_prod(*(torch.arange(n) for n in x.shape[2:])).tolist():
            for i in range(channels):
                root = (beta[i] + sum(gamma[i, j] * x[b, j, d, h, w] ** 2 for j in range(channels))) ** 0.5
                result[b, i, d, h, w] = x[b, i, d, h, w] * root if inverse else x[b, i, d, h, w] / root
    return result


@pytest.mark.parametrize(("normalization", "published"), [("batchnorm", 1_279_085), ("gdn", 1_305_389)])
def test_parameter_counts_are_the_published_ones(normalization: Normalization, published: int) -> None:
    network = SlicedWassersteinAutoencoder(normalization)
    assert sum(p.numel() for p in network.parameters()) == published


@pytest.mark.parametrize("normalization", ["gdn", "batchnorm", "gdn_bounded"])
def test_shapes_and_every_parameter_gets_a_gradient(normalization: Normalization) -> None:
    torch.manual_seed(0)
    network = SlicedWassersteinAutoencoder(normalization, **TINY)  # type: ignore[arg-type]
    blocks = torch.rand(5, 1, 8, 8, 8) * 2 - 1
    reconstruction, latents = network(blocks)
    assert reconstruction.shape == blocks.shape
    assert latents.shape == (5, 4)
    assert torch.equal(network.decode(network.encode(blocks)), reconstruction)

    ((reconstruction - blocks).square().mean() + latents.square().mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_other_block_sizes() -> None:
    network = SlicedWassersteinAutoencoder("gdn_bounded", latent_dim=2, channels=(3, 5), block_size=4)
    reconstruction, latents = network(torch.zeros(2, 1, 4, 4, 4))
    assert reconstruction.shape == (2, 1, 4, 4, 4)
    assert latents.shape == (2, 2)


@pytest.mark.parametrize(("channels", "block_size"), [((4, 8), 8), ((4,) * 4, 8), ((4, 8, 8), 7), ((), 1)])
def test_block_size_must_fit_the_channels(channels: tuple[int, ...], block_size: int) -> None:
    with pytest.raises(ConfigError, match=f"block_size is {block_size} but .* {len(channels)} entries"):
        SlicedWassersteinAutoencoder("gdn", channels=channels, block_size=block_size)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_equals_the_naive_reference(inverse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = GeneralizedDivisiveNormalization3d(3, inverse)
    with torch.no_grad():
        layer.beta.copy_(torch.rand(3, generator=generator) + 0.5)
        layer.gamma.copy_(torch.rand(3, 3, generator=generator))
    features = torch.randn(2, 3, 2, 3, 2, generator=generator)
    expected = naive_gdn(features, layer.beta.detach(), layer.gamma.detach(), inverse)
    torch.testing.assert_close(layer(features).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_gradients_are_right(inverse: bool) -> None:
    torch.manual_seed(0)
    raw = GeneralizedDivisiveNormalization3d(2, inverse).double()
    bounded = BoundedGeneralizedDivisiveNormalization3d(2, inverse).double()
    with torch.no_grad():
        # Off the bound, where the gradient of lower_bound is not the numerical one on purpose.
        bounded.gamma_root.fill_(0.3)
    features = torch.randn(2, 2, 1, 2, 1, dtype=torch.float64, requires_grad=True)
    for layer in (raw, bounded):
        parameters = tuple(layer.parameters())
        assert torch.autograd.gradcheck(lambda x, *_, layer=layer: layer(x), (features, *parameters))


@pytest.mark.parametrize("inverse", [False, True])
def test_bounded_gdn_starts_as_the_raw_one(inverse: bool) -> None:
    features = torch.randn(4, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    raw = GeneralizedDivisiveNormalization3d(6, inverse)
    bounded = BoundedGeneralizedDivisiveNormalization3d(6, inverse)
    torch.testing.assert_close(bounded(features), raw(features))


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_bounded_gdn_holds_its_bounds_after_huge_steps(direction: float) -> None:
    layer = BoundedGeneralizedDivisiveNormalization3d(6)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, direction * 1e6)
    optimizer.step()
    assert layer.beta.min().item() >= 1e-6 * (1 - 1e-6)
    assert layer.gamma.min().item() >= 0.0
    features = torch.randn(4, 6, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    assert layer(features).isfinite().all()


def test_raw_gdn_is_nan_after_the_same_step() -> None:
    layer = GeneralizedDivisiveNormalization3d(6)
    with torch.no_grad():
        layer.gamma.sub_(1.0)
    assert layer(torch.ones(1, 6, 1, 1, 1)).isnan().any()


@pytest.mark.parametrize("seed", range(5))
def test_first_batch_init_is_nan_at_the_first_forward(seed: int) -> None:
    torch.manual_seed(seed)
    network = SlicedWassersteinAutoencoder("gdn", gdn_init="first_batch", **TINY)  # type: ignore[arg-type]
    reconstruction, latents = network(torch.rand(4, 1, 8, 8, 8) * 2 - 1)
    assert reconstruction.isnan().any()
    assert latents.isnan().any()


def test_fan_in_init_lets_more_of_the_blocks_reach_the_latents() -> None:
    blocks = 0.27 * torch.randn(64, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    spread = {}
    for conv_init in get_args(ConvInit):
        torch.manual_seed(0)
        network = SlicedWassersteinAutoencoder("gdn_bounded", conv_init=conv_init)
        with torch.no_grad():
            spread[conv_init] = network.encode(blocks).std(dim=0).mean().item()
    assert spread["fan_in"] > 10 * spread["default"]


@pytest.mark.parametrize("normalization", ["gdn", "gdn_bounded"])
def test_gdn_beta_sets_where_every_beta_starts(normalization: Normalization) -> None:
    network = SlicedWassersteinAutoencoder(normalization, gdn_beta=0.1, **TINY)  # type: ignore[arg-type]
    kinds = (GeneralizedDivisiveNormalization3d, BoundedGeneralizedDivisiveNormalization3d)
    betas = [layer.beta for layer in network.modules() if isinstance(layer, kinds)]
    assert len(betas) == 5
    for beta in betas:
        torch.testing.assert_close(beta.detach(), torch.full_like(beta, 0.1))
