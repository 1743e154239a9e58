"""Every random generator of the process: seeded, taken down, put back."""

from __future__ import annotations

import contextlib
import ctypes
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (CPU and GPU) alike; ``seed`` is below 2**63."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
    # torch.manual_seed formats a traceback a call where CUDA is not in use: up to 5 ms a step
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def take_random_state() -> dict[str, Any]:
    """The state of all of them, as tensors and plain values."""
    version, words, gauss = random.getstate()
    numpy_state = _numpy_state()
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": {
            **numpy_state,
            "state": {"key": numpy_state["state"]["key"].tolist(), "pos": numpy_state["state"]["pos"]},
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def put_random_state(state: dict[str, Any]) -> None:
    """Make them what :func:`take_random_state` found; GPU states only where there are as many GPUs."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    key = np.array(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {"key": key, "pos": state["numpy"]["state"]["pos"]}})
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])


class _NumpyGenerator:
    """NumPy's global generator, read out only where something was drawn since.

    Reading it out costs 30 us, two thirds of a snapshot, and most loops never draw from it; its memory is compared in
    less than one. A normal number that waits in it can be drawn without a trace there: then it is read out.
    """

    _NUM_BYTES = 625 * 4  # 624 words and a position

    def __init__(self) -> None:
        self._generator: Any = None
        self._address = 0
        self._memory = b""
        self._state: dict[str, Any] = {"has_gauss": True}

    def state(self) -> dict[str, Any]:
        generator = np.random.mtrand._rand._bit_generator
        if type(generator).__name__ != "MT19937":
            return _numpy_state()
        if generator is not self._generator:
            self._generator, self._address = generator, generator.ctypes.state_address
        memory = ctypes.string_at(self._address, self._NUM_BYTES)
        if memory != self._memory or self._state["has_gauss"]:
            self._memory, self._state = memory, _numpy_state()
        return self._state


def _numpy_state() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    return dict(state)


_NUMPY = _NumpyGenerator()


@dataclass(frozen=True)
class RandomSnapshot:
    """The state of all of them in their own form: cheap enough for every step, and not for a file."""

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: list[Tensor] | None

    @classmethod
    def take(cls) -> RandomSnapshot:
        # a GPU's generator lives on the host: its state is read without waiting for the device
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
        return cls(random.getstate(), _NUMPY.state(), torch.get_rng_state(), cuda)

    def put(self) -> None:
        """Make the generators what they were."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """After the block all generators draw what they would have drawn without it."""
    state = RandomSnapshot.take()
    try:
        yield
    finally:
        state.put()
