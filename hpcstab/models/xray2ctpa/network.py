"""Stage 2: the frozen autoencoder, the code of the X-ray, the U-Net and, in the third phase, the discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcstab.models.xray2ctpa.autoencoder import VectorQuantizedAutoencoder
from hpcstab.models.xray2ctpa.config import Network
from hpcstab.models.xray2ctpa.discriminator import Discriminator
from hpcstab.models.xray2ctpa.features import ImageEncoder
from hpcstab.models.xray2ctpa.schedule import NoiseSchedule
from hpcstab.models.xray2ctpa.unet import DenoisingUNet

BOUND = 10.0
"""Where the write-up's clamps cut latents, codes and rebuilt latents."""
_RANGE_EPS = 1e-6
_TIME_SCALE = 1000.0  # the embedding's frequencies are made for steps of 0..1000


class LatentDiffusion(nn.Module):
    """Predicts noise (or v) of noisy latents under an X-ray.

    Forward: noisy latents (B, C, d, d, d), t (B,) int64, codes (B, E) of X-rays, places (B, 2, 3) of the patches: their
    first and last corner in the volume, which spans [-1, 1] -> (B, C, d, d, d).

    Attributes:
        shift, scale: latents of the U-Net are (latents of the autoencoder - shift) x scale, by channel, (C, 1, 1, 1).
        latent_bound: the largest absolute latent of the training set; sampling cuts there.
    """

    shift: Tensor
    scale: Tensor
    latent_bound: Tensor

    def __init__(self, keys: Network, autoencoder: VectorQuantizedAutoencoder, *, is_adversarial: bool) -> None:
        super().__init__()
        self.keys = keys
        self.autoencoder = autoencoder.freeze()
        self.image_encoder = ImageEncoder(keys.condition_size)
        self.null_condition = nn.Parameter(torch.zeros(keys.condition_size))
        self.unet = DenoisingUNet(
            keys.latent_channels,
            keys.unet_channels,
            keys.condition_size,
            num_places=3 if keys.coordinates else 0,
            attention=keys.attention,
        )
        self.schedule = NoiseSchedule(keys.num_timesteps, keys.prediction, zero_terminal_snr=keys.zero_terminal_snr)
        self.discriminator = Discriminator(keys.latent_channels) if is_adversarial else None
        self.register_buffer("shift", torch.zeros(keys.latent_channels, 1, 1, 1))
        self.register_buffer("scale", torch.ones(keys.latent_channels, 1, 1, 1))
        self.register_buffer("latent_bound", torch.ones(()))
        self._withheld: Tensor | None = None
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._as_withheld)  # type: ignore[no-untyped-call]

    def forward(self, noisy: Tensor, t: Tensor, codes: Tensor, places: Tensor) -> Tensor:
        grid = voxel_places(places, noisy.shape[-1]) if self.keys.coordinates else None
        time = t * (_TIME_SCALE / self.schedule.num_timesteps)
        predicted: Tensor = self.unet(noisy, time, codes * codes.shape[1] ** 0.5, grid)  # numbers of about 1
        return predicted

    @torch.no_grad()
    def encode(self, volumes: Tensor) -> Tensor:
        """Patches (B, 1, p, p, p) -> normalised latents (B, C, d, d, d)."""
        latents: Tensor = (self.autoencoder.encode(volumes) - self.shift) * self.scale
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, d, d, d) -> patches (B, 1, p, p, p)."""
        return self.autoencoder.decode(latents / self.scale + self.shift)

    def code(self, xrays: Tensor) -> Tensor:
        """(B, 1, S, S) in [0, 1] -> codes (B, E)."""
        codes: Tensor = self.image_encoder(xrays)
        return codes

    def or_null(self, codes: Tensor, dropped: Tensor) -> Tensor:
        """Codes (B, E), the learned null condition where ``dropped`` (B,)."""
        return torch.where(dropped[:, None], self.null_condition.to(codes.dtype), codes)

    def withhold_gradients(self, withheld: Tensor) -> None:
        """Until the next call parameters get gradients of 0 where ``withheld`` (0-d boolean) holds.

        The write-up returns a loss of 0 that hangs on nothing, and a prediction that hangs on nothing; to ask whether
        would wait for the device. A zero in the loss alone would not do: times a NaN inside the network it is NaN.
        """
        self._withheld = withheld

    def _as_withheld(self, gradient: Tensor) -> Tensor:
        return gradient if self._withheld is None else torch.where(self._withheld, 0.0, gradient)

    @torch.no_grad()
    def normalize(self, patches: Tensor, batch_size: int = 64) -> None:
        """Set shift, scale and bound by ``network.latent_norm`` from the training patches (N, 1, p, p, p).

        A range of the codebook below 1e-6 leaves latents as they are, as the write-up's guard does.
        """
        if self.keys.latent_norm == "standardized":
            latents = torch.cat([self.autoencoder.encode(part) for part in torch.split(patches, batch_size)])
            self.shift.copy_(latents.mean((0, 2, 3, 4)).reshape(self.shift.shape))
            self.scale.copy_(1.0 / latents.std((0, 2, 3, 4)).clamp(min=_RANGE_EPS).reshape(self.scale.shape))
        else:
            low, high = self.autoencoder.codebook.entries.aminmax()
            width = float(high - low)
            eps = _RANGE_EPS if self.keys.latent_norm == "codebook_range_clamped" else 0.0
            if width > _RANGE_EPS:
                self.shift.fill_(float(low + high) / 2.0)
                self.scale.fill_(2.0 / (width + eps))
        bounds = [self.encode(part).abs().amax() for part in torch.split(patches, batch_size)]
        self.latent_bound.copy_(torch.stack(bounds).amax())


def voxel_places(places: Tensor, edge: int) -> Tensor:
    """Where each voxel of a patch lies in the volume, (B, 3, d, d, d), from the patch's corners (B, 2, 3)."""
    within = (torch.arange(edge, device=places.device, dtype=places.dtype) + 0.5) / edge
    along = places[:, 0, :, None] + within * (places[:, 1] - places[:, 0])[:, :, None]  # (B, 3, d)
    x, y, z = along.unbind(1)
    shape = (len(places), edge, edge, edge)
    spread = (x[:, :, None, None], y[:, None, :, None], z[:, None, None, :])
    return torch.stack([axis.expand(shape) for axis in spread], dim=1)
