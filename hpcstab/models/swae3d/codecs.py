"""SPERR, SZ3 and zfp on whole volumes at the network's own budget, from imagecodecs where it is installed.

The bytes of a code include its header. The tolerance is bisected to the finest that fits into the budget.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Volume = NDArray[np.float32]
CODECS = ("sperr", "sz3", "zfp")
_NUM_BISECTIONS = 16
_NEAR = 0.995  # of the budget: a code of that size is not refined any more


def available() -> bool:
    """Is imagecodecs installed (``pip install 'hpcstab[codecs]'``)?"""
    return importlib.util.find_spec("imagecodecs") is not None


def version() -> str:
    import imagecodecs

    return f"imagecodecs {imagecodecs.__version__}"


def rebuild(codec: str, volume: Volume, num_bytes: int) -> Volume | None:
    """The volume (D, H, W) after compression to at most ``num_bytes``, by the best of the codec's modes.

    None where no setting of the codec fits: its header alone may be larger.
    """
    rebuilt = [mode.decode(code, volume) for mode in _modes(codec) if (code := _finest(mode, volume, num_bytes))]
    return min(rebuilt, key=lambda candidate: float(np.square(candidate - volume).mean()), default=None)


@dataclass(frozen=True)
class _Mode:
    """``encode(volume, tolerance)``: the tolerance is a part of the volume's range; ``exponents`` bound its log10."""

    encode: Callable[[Volume, float], bytes]
    decode: Callable[[bytes, Volume], Volume]
    exponents: tuple[float, float]


def _finest(mode: _Mode, volume: Volume, num_bytes: int) -> bytes | None:
    """The code of the smallest tolerance found that fits."""
    fitting = None
    fine, coarse = mode.exponents
    for _ in range(_NUM_BISECTIONS):
        middle = (fine + coarse) / 2.0
        code = mode.encode(volume, 10.0**middle)
        if len(code) <= num_bytes:
            fitting, coarse = code, middle
            if len(code) >= _NEAR * num_bytes:
                break
        else:
            fine = middle
    return fitting


def _modes(codec: str) -> list[_Mode]:
    import imagecodecs

    library: Any = imagecodecs

    def sperr(volume: Volume, tolerance: float) -> bytes:
        return bytes(library.sperr_encode(volume, -20.0 * np.log10(tolerance), "psnr", numthreads=1))

    def sz3(volume: Volume, tolerance: float) -> bytes:
        return bytes(library.sz3_encode(volume, "abs", abs=tolerance * float(np.ptp(volume))))

    def zfp_accuracy(volume: Volume, tolerance: float) -> bytes:
        return bytes(library.zfp_encode(volume, tolerance * float(np.ptp(volume)), mode="a", numthreads=1))

    def zfp_rate(volume: Volume, values_a_bit: float) -> bytes:
        return bytes(library.zfp_encode(volume, 1.0 / values_a_bit, mode="r", numthreads=1))

    return {
        "sperr": [_Mode(sperr, lambda code, _: library.sperr_decode(code, numthreads=1), (-6.0, -0.05))],
        "sz3": [_Mode(sz3, lambda code, volume: library.sz3_decode(code, volume.shape, volume.dtype), (-6.0, 0.0))],
        "zfp": [
            _Mode(zfp_accuracy, lambda code, _: library.zfp_decode(code), (-6.0, 2.0)),  # it stays far below its bound
            _Mode(zfp_rate, lambda code, _: library.zfp_decode(code), (-1.0, 2.0)),
        ],
    }[codec]
