"""Training loops that are not ours: small forms of what people train, each with a bare PyTorch loop of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcstab.stability import harden

Batch = Any


class Block(nn.Module):
    """A residual block with BatchNorm, downsampled by two where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.skip: nn.Module = nn.Identity()
        if stride == 2:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        inner = F.relu(self.norms[0](self.first(images)))
        return F.relu(self.norms[1](self.second(inner)) + self.skip(images))


class ResNet(nn.Module):
    """(B, 3, H, W) -> (B, 10); widths (64, 128, 256, 512) and two blocks each are ResNet-18.

    ``pools``: the stem of the original, which halves twice; else the one for small pictures, which keeps their size.
    """

    def __init__(self, widths: Sequence[int], blocks: int = 2, pools: bool = False) -> None:
        super().__init__()
        size, stride = (7, 2) if pools else (3, 1)
        stem = nn.Conv2d(3, widths[0], size, stride, size // 2, bias=False)
        pool = nn.MaxPool2d(3, 2, 1) if pools else nn.Identity()
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(widths[0]), nn.ReLU(), pool)
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        layers = [[Block(before, after), *(Block(after, after) for _ in range(blocks - 1))] for before, after in pairs]
        self.body = nn.Sequential(*[block for layer in layers for block in layer])
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


class Transformer(nn.Module):
    """(B, T) tokens -> (B, T, vocabulary), with dropout and a causal mask of -inf among its buffers.

    It says that the mask is causal: torch would ask the device in every forward pass.
    """

    def __init__(self, width: int, depth: int, vocabulary: int, length: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens) + self.place, mask=self.mask, is_causal=True))


class Recurrent(nn.Module):
    """(B, T, 3) -> (B, 2) by an LSTM of two layers with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, series: Tensor) -> Tensor:
        return self.head(self.lstm(series)[0][:, -1])


@dataclass(frozen=True)
class Loop:
    """What to train: models and optimizers, batches, the loss of a batch, and how to spoil one."""

    models: Callable[[], list[nn.Module]]
    optimizers: Callable[[list[nn.Module]], list[torch.optim.Optimizer]]
    batches: Callable[[], list[Batch]]
    loss: Callable[[list[nn.Module], Batch], Tensor]
    spoil: Callable[[Batch], Batch]


def _classify(models: list[nn.Module], batch: Batch) -> Tensor:
    return F.cross_entropy(models[0](batch["image"]), batch["label"])


def _next_token(models: list[nn.Module], batch: Batch) -> Tensor:
    tokens, weight = batch
    each = F.cross_entropy(models[0](tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return (each * weight).mean()


def _adversarial(models: list[nn.Module], real: Batch) -> Tensor:
    """Both players' losses from the same state; each reaches only its own parameters."""
    generator, critic = models
    made = generator(torch.randn(len(real), 2))
    critic_loss = F.softplus(critic(made.detach())).mean() + F.softplus(-critic(real)).mean()
    frozen = {name: parameter.detach() for name, parameter in critic.named_parameters()}
    return critic_loss + F.softplus(-torch.func.functional_call(critic, frozen, (made,))).mean()


def _series(models: list[nn.Module], batch: Batch) -> Tensor:
    series, target = batch
    return F.mse_loss(models[0](series), target)


def fused(kind: Any, **options: Any) -> Callable[[list[nn.Module]], list[torch.optim.Optimizer]]:
    return lambda models: [kind(model.parameters(), fused=True, **options) for model in models]


LOOPS: dict[str, Loop] = {
    "resnet with BatchNorm": Loop(
        models=lambda: [ResNet((4, 8), 1)],
        optimizers=fused(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
        batches=lambda: [{"image": torch.randn(4, 3, 8, 8), "label": torch.randint(10, (4,))} for _ in range(9)],
        loss=_classify,
        spoil=lambda batch: {**batch, "image": batch["image"] * math.inf},
    ),
    "transformer": Loop(
        models=lambda: [Transformer(8, 2, 11, 6)],
        optimizers=fused(torch.optim.AdamW, lr=0.01),
        batches=lambda: [(torch.randint(11, (3, 7)), torch.ones(18)) for _ in range(9)],
        loss=_next_token,
        spoil=lambda batch: (batch[0], batch[1].index_fill(0, torch.tensor([4]), math.nan)),
    ),
    "gan": Loop(
        models=lambda: [
            nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)),
            nn.Sequential(nn.Linear(2, 8), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(8, 1)),
        ],
        optimizers=fused(torch.optim.Adam, lr=0.01, betas=(0.5, 0.9)),
        batches=lambda: [torch.randn(8, 2) for _ in range(9)],
        loss=_adversarial,
        spoil=lambda batch: batch.index_fill(0, torch.tensor([3]), math.nan),
    ),
    "lstm": Loop(
        models=lambda: [Recurrent()],
        optimizers=lambda models: [torch.optim.RMSprop(models[0].parameters(), lr=0.01)],  # has no fused form
        batches=lambda: [(torch.randn(4, 6, 3), torch.randn(4, 2)) for _ in range(9)],
        loss=_series,
        spoil=lambda batch: (batch[0] * math.nan, batch[1]),
    ),
}


@dataclass
class Trained:
    """What a loop has left behind."""

    models: list[nn.Module]
    optimizers: list[torch.optim.Optimizer]
    hardened: Any = None

    def state(self) -> list[Any]:
        return [model.state_dict() for model in self.models] + [each.state_dict()["state"] for each in self.optimizers]


def made(loop: Loop, spoilt: Iterable[int]) -> tuple[Trained, list[Batch]]:
    torch.manual_seed(0)
    models = loop.models()
    batches = loop.batches()
    for index in spoilt:
        batches[index] = loop.spoil(batches[index])
    return Trained(models, loop.optimizers(models)), batches


def bare(loop: Loop, left_out: Iterable[int] = (), accumulate: int = 1) -> Trained:
    """A plain PyTorch loop that never sees some batches."""
    trained, batches = made(loop, ())
    for index, batch in enumerate(batches):
        if index in set(left_out):
            continue
        loop.loss(trained.models, batch).backward()  # type: ignore[no-untyped-call]
        if (index + 1) % accumulate == 0:
            for optimizer in trained.optimizers:
                optimizer.step()
                optimizer.zero_grad()
    return trained


def hardened(loop: Loop, spoilt: Iterable[int] = (), accumulate: int = 1, **options: Any) -> Trained:
    """The same loop with the three lines, over batches of which some are spoilt."""
    trained, batches = made(loop, spoilt)
    trained.hardened = harden(trained.models, trained.optimizers, **options)
    for index, batch in trained.hardened.batches(enumerate(batches)):
        loss = loop.loss(trained.models, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if (index + 1) % accumulate == 0:
            trained.hardened.step(loss)
            for optimizer in trained.optimizers:
                optimizer.zero_grad()
    return trained
