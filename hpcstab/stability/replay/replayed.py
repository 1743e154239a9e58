"""A capsule that was replayed: its facts, what the replay found, and both as text and for programs."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hpcstab.stability.replay.failing_step import FailingStep
from hpcstab.stability.replay.replay import Replay, replay
from hpcstab.stability.replay.text import replay_text


@dataclass(frozen=True)
class Replayed:
    """A replay, with the facts of its capsule and the device that it ran on; ``str`` is what the command prints."""

    facts: Mapping[str, Any]
    device: str
    replay: Replay

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        known = ("run_id", "step", "epoch", "update", "rank", "reason", "model", "ids")
        return {**{name: self.facts[name] for name in known}, "device": self.device, **self.replay.as_json()}

    def __str__(self) -> str:
        return replay_text(self.as_json())


def replay_as_recorded(step: FailingStep, facts: Mapping[str, Any], device: torch.device) -> Replay:
    """Replay a capsule's step with as many threads as it ran with, and compare with its figures.

    Raises:
        CheckpointError: the step cannot be run here.
    """
    with threads_of(facts):
        recorded = {name: float(value) for name, value in facts["figures"].items()}
        if facts["world_size"] > 1:
            del recorded["grad_norm"]  # that of all ranks together
        return replay(step, recorded, lr_before=facts.get("lr_before"), elsewhere=_elsewhere(facts, device))


@contextlib.contextmanager
def threads_of(facts: Mapping[str, Any]) -> Iterator[None]:
    """As many threads as the step ran with: its sums depend on them, and on a busy machine more are far slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(facts["num_threads"])
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _elsewhere(facts: Mapping[str, object], device: torch.device) -> str:
    """How this machine differs from the one that wrote the capsule; empty where figures must agree to the bit."""
    here = {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "device": device.type,
    }
    return ", ".join(f"{name} was {facts[name]}, is {value}" for name, value in here.items() if facts[name] != value)
