"""The convolutional KL autoencoder of vae2d: every state of it that the write-up went through.

B = images in a batch, C = channels, N = edge of an image in pixels, L = latent channels, n = N / 2**len(channels), the
edge of the latent grid. Blocks, widths, kernels: write-up `1-vae2d` and the repository that it describes
(KoeYe/ECE285-Koe); the form is that of the KL autoencoders of Rombach et al., "High-Resolution Image Synthesis with
Latent Diffusion Models" (CVPR 2022), at a factor of 32.
"""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.models.vae2d.config import NUM_ATTENTION_GROUPS
from hpcstab.models.vae2d.config import Network as Keys
from hpcstab.stability.numerics import fp32_island

LOGVAR_BOUND = 10.0
_LEAK = 0.2
_NEAR_ZERO_GAIN = 0.01


class Posterior(NamedTuple):
    """A diagonal normal over the latents: ``mean`` and ``logvar`` (B, L, n, n), at least float32.

    ``num_cut``: entries of logvar that a clamp has cut, a scalar; None without a clamp.
    """

    mean: Tensor
    logvar: Tensor
    num_cut: Tensor | None

    def sample(self, generator: torch.Generator) -> Tensor:
        """One draw (B, L, n, n) with the reparametrisation mean + exp(logvar / 2) * noise."""
        noise = torch.randn(self.mean.shape, generator=generator, device=generator.device, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.logvar).exp() * noise


class DownBlock(nn.Module):
    """(B, C_in, N, N) -> (B, C_out, N/2, N/2): a strided convolution and a strided 1x1 skip."""

    def __init__(self, num_in: int, num_out: int, keys: Keys) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(num_in, num_out, kernel_size=4, stride=2, padding=1), nn.BatchNorm2d(num_out)
        )
        self.skip = nn.Sequential(nn.Conv2d(num_in, num_out, kernel_size=1, stride=2), *_norm_of_skip(num_out, keys))

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(self.main(features) + self.skip(features))


class UpBlock(nn.Module):
    """(B, C_in, N, N) -> (B, C_out, 2N, 2N), by transposed convolutions or bilinear and convolved.

    The grid in the images of the transposed form comes from its skip branch: a 1x1 kernel at a stride of 2 reaches
    one of four pixels, the others get its bias. The main branch, 4x4 at a stride of 2, reaches all alike (two taps an
    axis), other than the write-up says. See Odena et al., "Deconvolution and Checkerboard Artifacts" (Distill 2016).
    """

    def __init__(self, num_in: int, num_out: int, keys: Keys) -> None:
        super().__init__()
        self.activation: nn.Module = nn.ReLU() if keys.up_activation == "relu" else nn.LeakyReLU(_LEAK)
        if keys.upsampling == "transposed":
            up: list[nn.Module] = [nn.ConvTranspose2d(num_in, num_out, kernel_size=4, stride=2, padding=1)]
            skip: list[nn.Module] = [nn.ConvTranspose2d(num_in, num_out, kernel_size=1, stride=2, output_padding=1)]
        else:
            up = [_double(), nn.Conv2d(num_in, num_out, kernel_size=3, padding=1)]
            skip = [_double(), nn.Conv2d(num_in, num_out, kernel_size=1)]
        main = [*up, nn.BatchNorm2d(num_out)]
        for _ in range(keys.up_convs - 1):
            main += [self.activation, nn.Conv2d(num_out, num_out, kernel_size=3, padding=1), nn.BatchNorm2d(num_out)]
        self.main = nn.Sequential(*main)
        self.skip = nn.Sequential(*skip, *_norm_of_skip(num_out, keys))

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.activation(self.main(features) + self.skip(features))
        return result


class SelfAttention(nn.Module):
    """(B, C, N, N) -> (B, C, N, N): every position looks at all N^2, one head, added to the input.

    Its cost grows with N^4: 256 positions at 16x16 are cheap, those of a whole image are not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NUM_ATTENTION_GROUPS, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, kernel_size=1)
        self.projection = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.query_key_value(self.norm(features)).flatten(2).transpose(1, 2)  # (B, N^2, 3 C)
        query, key, value = tokens.chunk(3, dim=2)
        attended = functional.scaled_dot_product_attention(query, key, value)  # scaled by C^-0.5
        added: Tensor = self.projection(attended.transpose(1, 2).reshape(features.shape))
        return features + added


class Encoder(nn.Module):
    """(B, 1, N, N) -> :class:`Posterior`."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self._bound = keys.logvar
        layers: list[nn.Module] = [
            DownBlock(num_in, num_out, keys) for num_in, num_out in itertools.pairwise((1, *keys.channels))
        ]
        if keys.attention:
            layers.insert(len(layers) - 1, SelfAttention(keys.channels[-2]))
        self.features = nn.Sequential(*layers)
        self.to_mean = nn.Conv2d(keys.channels[-1], keys.latent_channels, kernel_size=1)
        self.to_logvar = nn.Conv2d(keys.channels[-1], keys.latent_channels, kernel_size=1)

    def forward(self, images: Tensor) -> Posterior:
        features = self.features(images)
        return self._posterior(self.to_mean(features), self.to_logvar(features))

    @fp32_island
    def _posterior(self, mean: Tensor, raw: Tensor) -> Posterior:
        if self._bound == "clamp":
            num_cut = (raw.detach().abs() > LOGVAR_BOUND).sum()
            return Posterior(mean, raw.clamp(-LOGVAR_BOUND, LOGVAR_BOUND), num_cut)
        logvar = LOGVAR_BOUND * torch.tanh(raw / LOGVAR_BOUND) if self._bound == "bounded" else raw
        return Posterior(mean, logvar, None)


class Decoder(nn.Module):
    """(B, L, n, n) -> images (B, 1, N, N) in (0, 1)."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        widths = (*reversed(keys.channels), keys.channels[0])
        layers: list[nn.Module] = [UpBlock(num_in, num_out, keys) for num_in, num_out in itertools.pairwise(widths)]
        if keys.attention:
            layers.insert(1, SelfAttention(keys.channels[-2]))
        self.from_latent = nn.Conv2d(keys.latent_channels, keys.channels[-1], kernel_size=1)
        self.features = nn.Sequential(*layers)
        self.to_image = nn.Conv2d(keys.channels[0], 1, kernel_size=3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.to_image(self.features(self.from_latent(latents)))
        return images.sigmoid()


class KLAutoencoder(nn.Module):
    """The network of vae2d. Forward: images (B, 1, N, N) in [0, 1] -> reconstruction from the mean, posterior."""

    def __init__(self, keys: Keys) -> None:
        super().__init__()
        self.encoder = Encoder(keys)
        self.decoder = Decoder(keys)
        initialize(self, keys)

    def encode(self, images: Tensor) -> Posterior:
        """(B, 1, N, N) -> posterior of the latents."""
        posterior: Posterior = self.encoder(images)
        return posterior

    def decode(self, latents: Tensor) -> Tensor:
        """(B, L, n, n) -> images (B, 1, N, N) in (0, 1)."""
        images: Tensor = self.decoder(latents)
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, Posterior]:
        posterior = self.encode(images)
        return self.decode(posterior.mean), posterior


def initialize(network: KLAutoencoder, keys: Keys) -> None:
    """Redraw what ``init``, ``head_init`` and ``attention_init`` name; all else keeps PyTorch's own.

    By fan_out the 1x1 heads, 512 channels to 16, get a standard deviation of sqrt(2/16) for sums over 512 features:
    means and log-variances start at +-40 and not at 0, which is the root of the write-up's NaN. For the same reason the
    last convolution, 32 channels to 1, starts in the flat ends of the sigmoid.
    """
    if keys.init != "default":
        mode: Literal["fan_in", "fan_out"] = "fan_out" if keys.init == "kaiming_fan_out" else "fan_in"
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(layer.weight, mode=mode, nonlinearity="relu")
                _zero_bias(layer)
    if keys.head_init == "near_zero":
        for head in (network.encoder.to_mean, network.encoder.to_logvar):
            nn.init.xavier_uniform_(head.weight, gain=_NEAR_ZERO_GAIN)
            _zero_bias(head)
    if keys.attention_init == "zero":
        for layer in network.modules():
            if isinstance(layer, SelfAttention):  # it begins as the identity
                nn.init.zeros_(layer.projection.weight)
                _zero_bias(layer.projection)


def _norm_of_skip(channels: int, keys: Keys) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels)] if keys.skip_norm == "batchnorm" else []


def _double() -> nn.Module:
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


def _zero_bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
