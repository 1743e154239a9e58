"""The blockwise convolutional autoencoder of SWAE 3D, with three normalizations to choose from.

Architecture: AE-SZ, Liu et al., "Exploring Autoencoder-based Error-bounded Compression for Scientific Data"
(CLUSTER 2021); channels, kernels and latent size as in the write-up `0-swae3d`.
B = blocks in a batch, C = channels, N = edge of a block in voxels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.errors import ConfigError
from hpcstab.stability.numerics import lower_bound

Normalization = Literal["gdn", "batchnorm", "gdn_bounded"]
GdnInit = Literal["identity", "first_batch"]
ConvInit = Literal["default", "fan_in"]
NormalizationFactory = Callable[[int, bool], nn.Module]  # (channels, inverse) -> layer

_GAMMA_INIT = 0.1  # of Balle et al. 2016; keeps the first forward close to the identity
_BETA_MIN = 1e-6
_PEDESTAL = (2.0**-18) ** 2  # keeps the derivative of the square root finite at zero (TensorFlow Compression)


def _divisive_normalization(features: Tensor, beta: Tensor, gamma: Tensor, inverse: bool) -> Tensor:
    """`x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)` at each voxel, or times the root where `inverse`.

    features (B, C, D, H, W), beta (C,), gamma (C, C); returns (B, C, D, H, W) as a channels-last view.
    """
    # A linear layer over the channels: alone up to 3 times faster on CPU than a 1x1x1 convolution at the widths
    # of this network, in a whole training step within 3 % of it.
    voxels = features.movedim(1, -1)
    radicand = functional.linear(voxels.square(), gamma, beta)
    normalized = voxels * (radicand.sqrt() if inverse else radicand.rsqrt())
    return normalized.movedim(-1, 1)


class GeneralizedDivisiveNormalization3d(nn.Module):
    """GDN (or its approximate inverse) with unconstrained parameters: the failing state of the write-up.

    Nothing keeps `beta + gamma x^2` positive: Adam moves each of the C^2 entries of gamma by about the
    learning rate a step, the sum over channels goes negative, and its root is NaN.
    Use `BoundedGeneralizedDivisiveNormalization3d`.

    Args:
        channels: C >= 1.
        inverse: multiply by the root instead of dividing (decoder).
        init: `identity` = `beta` and gamma 0.1 I. `first_batch` = beta 1e-6 and gamma 0.1 * N(0, 1): about
            half of the radicands are negative from the start, so the first forward is NaN (a known flaw, kept
            to show it).
        beta: where beta starts with `init="identity"`.

    Forward: (B, C, D, H, W) -> (B, C, D, H, W).
    Source: Balle et al., "Density Modeling of Images using a Generalized Normalization Transformation"
    (ICLR 2016).
    """

    def __init__(self, channels: int, inverse: bool = False, init: GdnInit = "identity", beta: float = 1.0) -> None:
        super().__init__()
        self.inverse = inverse
        if init == "identity":
            gamma = _GAMMA_INIT * torch.eye(channels)
        else:
            beta, gamma = _BETA_MIN, 0.1 * torch.randn(channels, channels)
        self.beta = nn.Parameter(torch.full((channels,), beta))
        self.gamma = nn.Parameter(gamma)

    def forward(self, features: Tensor) -> Tensor:
        return _divisive_normalization(features, self.beta, self.gamma, self.inverse)


class BoundedGeneralizedDivisiveNormalization3d(nn.Module):
    """GDN (or its approximate inverse) whose beta >= 1e-6 and gamma >= 0 for any parameter values: the cure.

    Stores `sqrt(parameter + pedestal)` and squares it back, so that the radicand is positive whatever the
    optimizer does. Starts at the same function as the raw GDN with `init="identity"`.

    Args:
        channels: C >= 1.
        inverse: multiply by the root instead of dividing (decoder).
        beta: where beta starts, >= 1e-6.

    Forward: (B, C, D, H, W) -> (B, C, D, H, W).
    Source: the non-negative parametrisation of TensorFlow Compression (`GDNParameter`), Balle 2018.
    """

    def __init__(self, channels: int, inverse: bool = False, beta: float = 1.0) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta_root = nn.Parameter((torch.full((channels,), beta) + _PEDESTAL).sqrt())
        self.gamma_root = nn.Parameter((_GAMMA_INIT * torch.eye(channels) + _PEDESTAL).sqrt())

    @property
    def beta(self) -> Tensor:
        """(C,), >= 1e-6 up to rounding."""
        return _square_back(self.beta_root, _BETA_MIN)

    @property
    def gamma(self) -> Tensor:
        """(C, C), >= 0."""
        return _square_back(self.gamma_root, 0.0)

    def forward(self, features: Tensor) -> Tensor:
        return _divisive_normalization(features, self.beta, self.gamma, self.inverse)


def _square_back(root: Tensor, minimum: float) -> Tensor:
    """The parameter behind its stored root, not below `minimum`; the shape of `root`."""
    return lower_bound(root, (minimum + _PEDESTAL) ** 0.5).square() - _PEDESTAL


def _normalization_factory(normalization: Normalization, gdn_init: GdnInit, gdn_beta: float) -> NormalizationFactory:
    """What builds the chosen layer, with the activation that belongs to it."""

    def build(channels: int, inverse: bool) -> nn.Module:
        if normalization == "gdn":
            return GeneralizedDivisiveNormalization3d(channels, inverse, gdn_init, gdn_beta)
        if normalization == "gdn_bounded":
            return BoundedGeneralizedDivisiveNormalization3d(channels, inverse, gdn_beta)
        # GDN is its own non-linearity; batch normalization needs one.
        return nn.Sequential(nn.BatchNorm3d(channels), nn.ReLU())

    return build


class Encoder(nn.Module):
    """(B, 1, N, N, N) -> (B, latent_dim); each of the `channels` halves the edge, so N = 2**len(channels)."""

    def __init__(self, channels: Sequence[int], latent_dim: int, normalization: NormalizationFactory) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for num_in, num_out in zip((1, *channels[:-1]), channels, strict=True):
            layers += [
                nn.Conv3d(num_in, num_out, kernel_size=3, stride=2, padding=1),
                nn.Conv3d(num_out, num_out, kernel_size=3, padding=1),
                normalization(num_out, False),
            ]
        self.features = nn.Sequential(*layers)
        self.to_latent = nn.Linear(channels[-1], latent_dim)

    def forward(self, blocks: Tensor) -> Tensor:
        features: Tensor = self.features(blocks)
        latents: Tensor = self.to_latent(features.flatten(1))
        return latents


class Decoder(nn.Module):
    """(B, latent_dim) -> (B, 1, N, N, N), the mirror of `Encoder`; nothing after the last convolution."""

    def __init__(self, channels: Sequence[int], latent_dim: int, normalization: NormalizationFactory) -> None:
        super().__init__()
        self.from_latent = nn.Linear(latent_dim, channels[-1])
        widths = (*reversed(channels), 1)
        layers: list[nn.Module] = []
        for num_in, num_out in itertools.pairwise(widths):
            layers += [
                nn.ConvTranspose3d(num_in, num_out, kernel_size=3, stride=2, padding=1, output_padding=1),
                nn.Conv3d(num_out, num_out, kernel_size=3, padding=1),
                normalization(num_out, True),
            ]
        self.features = nn.Sequential(*layers[:-1])

    def forward(self, latents: Tensor) -> Tensor:
        features = self.from_latent(latents)[:, :, None, None, None]
        blocks: Tensor = self.features(features)
        return blocks


def initialize_fan_in(network: nn.Module) -> None:
    """Redraw every convolution and linear layer of `network`: weights N(0, 1 / fan_in), biases zero.

    PyTorch's default has a third of that variance and random biases, and zero padding takes up to 26 of 27
    taps at edges of 1 and 2 voxels. A GDN that starts near the identity does not rescale as batch normalization
    does: of blocks of std 0.27 the default leaves a block-dependent 0.0002 in the latents, this one 0.0075.
    Source: LeCun et al., "Efficient BackProp" (1998).
    """
    for layer in network.modules():
        if not isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)):
            continue
        fan_in: float = layer.weight[0].numel()
        if isinstance(layer, nn.ConvTranspose3d):
            # Its weight is (in, out, ...), and a stride of s spreads the taps over s^3 output voxels.
            fan_in = layer.in_channels * math.prod(layer.kernel_size) / math.prod(layer.stride)
        nn.init.normal_(layer.weight, std=fan_in**-0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


class SlicedWassersteinAutoencoder(nn.Module):
    """The network of SWAE 3D: each block of a volume is coded on its own.

    Args:
        normalization: `gdn` (raw, the failing state), `batchnorm` (with ReLU, the write-up's fix) or
            `gdn_bounded`.
        gdn_init: start of the raw GDN; read by `normalization="gdn"` only.
        latent_dim: floats a block is coded into.
        channels: widths of the encoder's blocks; the decoder mirrors them.
        block_size: N, the edge of a block in voxels: 2**len(channels).
        conv_init: `default` (PyTorch's) or `fan_in` (`initialize_fan_in`).
        gdn_beta: where beta of a GDN starts; the smaller, the less linear the network is at first.

    Forward: blocks (B, 1, N, N, N), scaled to about [-1, 1], -> reconstruction (B, 1, N, N, N) and latents
    (B, latent_dim).

    Raises:
        ConfigError: `block_size` does not fit the number of channels.
    """

    def __init__(
        self,
        normalization: Normalization,
        gdn_init: GdnInit = "identity",
        latent_dim: int = 16,
        channels: Sequence[int] = (32, 64, 128),
        block_size: int = 8,
        conv_init: ConvInit = "default",
        gdn_beta: float = 1.0,
    ) -> None:
        super().__init__()
        if not channels or block_size != 2 ** len(channels):
            raise ConfigError(
                f"network.block_size is {block_size} but network.channels has {len(channels)} entries "
                f"({', '.join(map(str, channels)) or 'none'}): each halves the block, so block_size must be "
                f"2**{len(channels)} = {2 ** len(channels)} (and there must be at least one entry)"
            )
        factory = _normalization_factory(normalization, gdn_init, gdn_beta)
        self.encoder = Encoder(channels, latent_dim, factory)
        self.decoder = Decoder(channels, latent_dim, factory)
        if conv_init == "fan_in":
            initialize_fan_in(self)

    def encode(self, blocks: Tensor) -> Tensor:
        """(B, 1, N, N, N) -> (B, latent_dim)."""
        latents: Tensor = self.encoder(blocks)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_dim) -> (B, 1, N, N, N)."""
        blocks: Tensor = self.decoder(latents)
        return blocks

    def forward(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.encode(blocks)
        return self.decode(latents), latents
