"""The replay of a capsule that ``harden`` wrote: only the code that trained has its model and its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpcstab.errors import CheckpointError, ConfigError
from hpcstab.stability.replay.capsule import Capsule, read_capsule
from hpcstab.stability.replay.failing_step import Batch, FailingStep, Precision, leaves
from hpcstab.stability.replay.replayed import Replayed, replay_as_recorded
from hpcstab.stability.unwrap import one_network

_FORMATS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def replay(
    capsule: str | Path,
    model: nn.Module | Sequence[nn.Module],
    loss_function: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    *,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Replayed:
    """Run a refused step again: which operation made its first non-finite value, and what to change.

    ``print`` the result to read what ``hpcstab replay`` says of a training by hpcstab. Afterwards the model is in the
    state that the step began with.

    Args:
        capsule: a folder ``step_...`` under that of ``harden(capsules=...)``.
        model: as ``harden`` was given it, built anew or not, on the device to run on, in training mode.
        loss_function: ``loss_function(model, batch)`` is what your loop computes from a batch, 0-d, without
            ``backward`` and loss scale. The batch is made of plain containers: named tuples are tuples there.
        optimizer: over the parameters of ``model``, to ask what a smaller step would have done; None does not ask.
        dtype: of the autocast around your forward pass; leave your own out of ``loss_function``, so that it can be
            run in full precision too.

    Raises:
        CheckpointError: it is no capsule of ``harden``, does not fit the model, or the step cannot be run.
        ConfigError: an unknown ``dtype``.
    """
    if dtype not in _FORMATS:
        raise ConfigError(f"dtype '{dtype}' is none of {', '.join(_FORMATS)}")
    network = one_network(model)
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    kept = read_capsule(Path(capsule), device)
    if kept.facts.get("origin") != "harden":
        raise CheckpointError(
            f"{capsule}: is of a training by hpcstab: `hpcstab replay {capsule}` needs no code of yours"
        )
    step = _failing_step(kept, network, model, loss_function, optimizer, dtype)
    facts = {**kept.facts, "run_id": str(capsule), "model": type(model).__name__, "ids": list(step.ids)}
    return Replayed(facts, device.type, replay_as_recorded(step, facts, device))


def _failing_step(
    kept: Capsule,
    network: nn.Module,
    model: Any,
    loss_function: Callable[[Any, Any], Tensor],
    optimizer: torch.optim.Optimizer | None,
    dtype: str,
) -> FailingStep:
    facts, state = kept.facts, kept.state
    optimizer = _load(kept, network, optimizer)
    num_parts, scale = facts["num_batches"], facts["loss_scale"] or 1.0
    device = next(network.parameters()).device.type

    def gradients(batch: Batch, *, precision: Precision, term: str | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        recorded = precision == "recorded"
        for part in batch if num_parts > 1 else [batch]:
            with torch.autocast(device, _FORMATS[dtype], enabled=recorded and dtype != "fp32"):
                loss = loss_function(model, part)
            (loss * scale if recorded else loss).backward()  # type: ignore[no-untyped-call]
        return loss, {}

    first = state["batch"][0] if num_parts > 1 else state["batch"]
    num_samples = next((tensor.shape[0] for _, tensor in leaves(first) if tensor.ndim), 0) if num_parts == 1 else 0
    return FailingStep(
        network,
        optimizer,
        state["batch"],
        gradients,
        state["random"],
        tuple(map(str, range(num_samples))),
        dtype=dtype,
        loss_scale=scale,
        num_parts=num_parts,
    )


def _load(kept: Capsule, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer:
    """Bring model and optimizer to the state that the step began with."""
    state = kept.state
    several = kept.facts["num_optimizers"] > 1
    if optimizer is not None and several:
        raise CheckpointError(f"{kept.folder}: is of {kept.facts['num_optimizers']} optimizers: leave optimizer out")
    asked = optimizer if optimizer is not None else torch.optim.SGD(network.parameters())
    try:
        network.load_state_dict(state["network"])
        for name, buffer in network.named_buffers():
            buffer.copy_(state["buffers"][name])
        if optimizer is not None:
            optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{kept.folder}: does not fit this model or optimizer: {reason}") from None
    return asked
