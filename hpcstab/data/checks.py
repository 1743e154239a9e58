"""Checks of the data of a run, before anything is queued.

A training that never sees a held-out sample can be judged; one whose validation set is its training set
looks good for as long as anyone likes. So the checks look across the split as well as at each sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hpcstab.task import DataFinding

NamedArrays = Iterable[tuple[str, NDArray[np.float32]]]


def check_arrays(
    splits: Mapping[str, NamedArrays], shape: tuple[int, ...] | None, value_range: tuple[float, float]
) -> list[DataFinding]:
    """One pass over (id, array) samples of each split.

    Args:
        splits: samples by split; the first split is the one that is trained on.
        shape: what every sample must have; None where samples differ in it.
        value_range: lowest and highest value allowed, in the unit of the samples.
    """
    findings: list[DataFinding] = []
    owners: dict[str, tuple[str, str]] = {}
    for split, samples in splits.items():
        bad: dict[str, list[str]] = {"shape": [], "non_finite": [], "constant": [], "range": []}
        copies: list[tuple[str, str]] = []
        leaks: list[tuple[str, str]] = []
        for name, array in samples:
            problem = _problem(array, shape, value_range)
            if problem:
                bad[problem].append(name)
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            owner_split, owner = owners.setdefault(digest, (split, name))
            if owner != name or owner_split != split:
                (copies if owner_split == split else leaks).append((name, f"{owner_split} {owner}"))
        findings += _describe(split, bad, shape, value_range)
        findings += _describe_copies(split, copies, leaks)
    return findings


def num_distinct(samples: NamedArrays) -> int:
    """How many samples differ from each other in at least one bit."""
    return len({hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest() for _, array in samples})


def _problem(array: NDArray[np.float32], shape: tuple[int, ...] | None, value_range: tuple[float, float]) -> str | None:
    if shape is not None and array.shape != shape:
        return "shape"
    if not np.isfinite(array).all():
        return "non_finite"
    if array.min() == array.max():
        return "constant"
    if array.min() < value_range[0] or array.max() > value_range[1]:
        return "range"
    return None


def _describe(
    split: str, bad: Mapping[str, list[str]], shape: tuple[int, ...] | None, value_range: tuple[float, float]
) -> list[DataFinding]:
    texts = {
        "shape": f"have another shape than {shape}",
        "non_finite": "hold NaN or infinities",
        "constant": "are constant",
        "range": f"leave the range [{value_range[0]:g}, {value_range[1]:g}]",
    }
    return [
        DataFinding(kind, split, len(names), f"{len(names)} {split} samples {texts[kind]}: {_some(names)}")  # type: ignore[arg-type]
        for kind, names in bad.items()
        if names
    ]


def _describe_copies(split: str, copies: list[tuple[str, str]], leaks: list[tuple[str, str]]) -> list[DataFinding]:
    findings = []
    if copies:
        examples = _some([f"{name} = {owner}" for name, owner in copies])
        message = f"{len(copies)} {split} samples are copies of other {split} samples: {examples}"
        findings.append(DataFinding("duplicate", split, len(copies), message))
    if leaks:
        examples = _some([f"{name} = {owner}" for name, owner in leaks])
        message = f"{len(leaks)} {split} samples are copies of samples in another split (a leak): {examples}"
        findings.append(DataFinding("duplicate", split, len(leaks), message))
    return findings


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
