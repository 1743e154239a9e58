"""The discriminator of the write-up's third phase: true latents against rebuilt ones, patch by patch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hpcstab.models.xray2ctpa.blocks import conv, group_norm

_WIDTH = 16


class Discriminator(nn.Module):
    """Latents (B, C, d, d, d) -> a logit for each patch (B, 1, d/2, d/2, d/2), above 0 for what it takes for true."""

    def __init__(self, latent_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv(latent_channels, _WIDTH),
            nn.LeakyReLU(0.2),
            conv(_WIDTH, _WIDTH, stride=2),
            group_norm(_WIDTH),
            nn.LeakyReLU(0.2),
            conv(_WIDTH, 1),
        )

    def forward(self, latents: Tensor) -> Tensor:
        logits: Tensor = self.layers(latents)
        return logits


def adversarial(discriminator: nn.Module, rebuilt: Tensor) -> Tensor:
    """What the network pays for latents that are told from true ones; the discriminator itself gets no gradient."""
    fixed = {name: value.detach() for name, value in discriminator.named_parameters()}
    logits: Tensor = functional_call(discriminator, fixed, (rebuilt,))
    return -logits.mean()


def hinge(discriminator: nn.Module, true: Tensor, rebuilt: Tensor) -> Tensor:
    """What the discriminator pays: mean of max(0, 1 - D(true)) and max(0, 1 + D(rebuilt)); the network gets none of it.

    Source: Lim and Ye, "Geometric GAN" (2017).
    """
    on_true = functional.relu(1.0 - discriminator(true.detach())).mean()
    on_rebuilt = functional.relu(1.0 + discriminator(rebuilt.detach())).mean()
    return 0.5 * (on_true + on_rebuilt)
