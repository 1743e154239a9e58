"""The sliced Wasserstein term that pulls the latents of SWAE 3D towards a prior."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_directions(num: int, dim: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Directions (num, dim) drawn uniformly from the unit sphere, float32 on `device`.

    Drawn where `generator` lives and then moved: with a CPU generator every device gets the same directions.
    """
    directions = torch.randn(num, dim, generator=generator, device=generator.device)
    return torch.nn.functional.normalize(directions, dim=1).to(device)


def sliced_wasserstein(latents: Tensor, prior: Tensor, directions: Tensor) -> Tensor:
    """Squared sliced 2-Wasserstein distance between two samples of equal size; a scalar >= 0.

    In one dimension the optimal transport between two samples of equal size pairs them in sorted order; the
    mean over directions and samples of the squared differences is the estimate.

    Args:
        latents: (B, D), differentiable.
        prior: (B, D), samples of the distribution aimed at, for SWAE of N(0, I).
        directions: (P, D), unit vectors.

    Source: Kolouri et al., "Sliced-Wasserstein Autoencoder" (arXiv 1804.01947), with p = 2.
    """
    projected_latents = (directions @ latents.T).sort(dim=1).values
    projected_prior = (directions @ prior.T).sort(dim=1).values
    return (projected_latents - projected_prior).square().mean()
