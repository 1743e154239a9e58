"""Keyed seeds: every random draw of a run is named by what it is for.

A draw depends on its key alone, never on how many draws came before it. So neither the number of
workers nor of ranks changes a sample, and a resumed run draws what the uninterrupted one drew.
"""

from __future__ import annotations

import hashlib


def keyed_seed(seed: int, purpose: str, *parts: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. ``keyed_seed(0, "permutation", epoch)``.

    Args:
        seed: the seed of the run, >= 0.
        purpose: what the draw is for.
        parts: what names the draw within its purpose (epoch, step, sample id).
    """
    key = "\x1f".join([str(seed), purpose, *(f"{type(part).__name__}:{part}" for part in parts)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
