"""The autoencoder of a run that has none: fitted before step 0 on its training patches, the same for all variants.

Short, in fp32 on the CPU, from generators of its own: the same seed, data and architecture give the same weights bit
for bit, whatever the variant trains afterwards.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hpcstab.models.xray2ctpa.autoencoder import VectorQuantizedAutoencoder, commitment
from hpcstab.models.xray2ctpa.config import Network
from hpcstab.seeds import keyed_seed
from hpcstab.stability.numerics import fp32_island

_BATCH_SIZE, _LR, _COMMITMENT = 8, 3e-3, 0.25


def new_autoencoder(keys: Network) -> VectorQuantizedAutoencoder:
    """The architecture that the config names, drawn from torch's generator."""
    return VectorQuantizedAutoencoder(keys.channels, keys.num_codes, keys.latent_channels)


@fp32_island
def fit_autoencoder(keys: Network, patches: Tensor, seed: int) -> VectorQuantizedAutoencoder:
    """Fit on patches (N, 1, p, p, p) in [0, 1]; torch's own generator is afterwards what it was."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(keyed_seed(seed, "fit_autoencoder"))
        autoencoder = new_autoencoder(keys)
        optimizer = torch.optim.Adam(autoencoder.parameters(), lr=_LR)
        for step in range(keys.fit_steps):
            for group in optimizer.param_groups:
                group["lr"] = _LR * 0.5 * (1.0 + math.cos(math.pi * step / keys.fit_steps))
            batch = patches[torch.randint(len(patches), (min(_BATCH_SIZE, len(patches)),))]
            rebuilt, latents = autoencoder(batch)
            loss = functional.l1_loss(rebuilt, batch) + _COMMITMENT * commitment(latents, autoencoder.codebook)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return autoencoder.eval()
