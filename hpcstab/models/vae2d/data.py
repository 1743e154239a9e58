"""Images of vae2d as items, and two predictors that learned nothing of what a network could."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageItems:
    """Items are images (1, N, N), float32 in [0, 1]; they are kept as the bytes (S, N, N) that they were read from."""

    pixels: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch(slice(index, index + 1))[0]

    def batch(self, indices: slice) -> Tensor:
        """Images (B, 1, N, N)."""
        return self.pixels[indices].unsqueeze(1).float() / 255.0

    def chunks(self, size: int = 64) -> Iterator[Tensor]:
        """All images, as batches."""
        for first in range(0, len(self), size):
            yield self.batch(slice(first, first + size))


def mean_image(images: ImageItems) -> Tensor:
    """(1, 1, N, N): the best answer of a network that looks at nothing."""
    total = torch.stack([chunk.double().sum(0) for chunk in images.chunks()]).sum(0)
    return (total / len(images)).float().unsqueeze(0)


def block_pca(images: ImageItems, block_size: int, num_components: int) -> Callable[[Tensor], Tensor]:
    """A function images (B, 1, N, N) -> their reconstruction from the leading components of each block.

    The linear method with the network's own latents: as many numbers for each block of 32x32 pixels as the latent grid
    has channels, fitted on the training images.
    """
    count, total, products = 0, torch.zeros(block_size**2).double(), torch.zeros(block_size**2, block_size**2).double()
    for chunk in images.chunks():
        blocks = _to_blocks(chunk, block_size)
        count += len(blocks)
        total += blocks.double().sum(0)
        products += (blocks.T @ blocks).double()
    mean = total / count
    _, vectors = torch.linalg.eigh(products / count - mean.outer(mean))  # ascending: the leading ones are last
    basis, centre = vectors[:, -num_components:].float(), mean.float()

    def reconstruct(batch: Tensor) -> Tensor:
        codes = (_to_blocks(batch, block_size) - centre) @ basis
        return _from_blocks(codes @ basis.T + centre, batch.shape)

    return reconstruct


def _to_blocks(images: Tensor, size: int) -> Tensor:
    """(B, 1, N, N) -> (B * (N / size)^2, size^2)."""
    tiles = images[:, 0].unfold(1, size, size).unfold(2, size, size)
    return tiles.reshape(-1, size * size)


def _from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_to_blocks` for images of ``shape`` (B, 1, N, N)."""
    size = round(blocks.shape[1] ** 0.5)
    per_axis = shape[-1] // size
    tiles = blocks.reshape(shape[0], per_axis, per_axis, size, size)
    return tiles.transpose(2, 3).reshape(shape)
