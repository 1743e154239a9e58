"""Two checkpoints of one training beside each other: names, shapes, and how far the values have moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from hpcstab.doctor.contents import TensorFile
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.findings import Finding
from hpcstab.doctor.parts import Located

PIECE_VALUES = 1 << 20
DRIFT = 10.0
"""A tensor that moved by ten times its own norm is another tensor."""
_COMPARED = ("batchnorm", "weights", "ema")


def partners(ours: Mapping[str, Located], theirs: Mapping[str, Located]) -> dict[str, Located]:
    """For each name of ours the tensor of a sibling that it is there: of the same path, else of the same own name.

    The own name finds the weights of a bare state dict in those of a whole training.
    """
    by_own: dict[tuple[str, str], list[Located]] = {}
    for located in theirs.values():
        by_own.setdefault((located.part, located.own_name), []).append(located)
    found = {}
    for name, located in ours.items():
        alike = by_own.get((located.part, located.own_name), [])
        if name in theirs:
            found[name] = theirs[name]
        elif len(alike) == 1:
            found[name] = alike[0]
    return found


def compare(ours: Examined, sibling: Examined) -> list[Finding]:
    """What ``ours`` lacks, has too many of, or has in another shape than its sibling, and what has drifted away."""
    pairs = partners(ours.layout.tensors, sibling.layout.tensors)
    found = list(_names(ours, sibling, pairs))
    sick = {finding.name for finding in (*sibling.diagnosis.sick, *ours.diagnosis.sick)}
    if sibling.diagnosis.verdict in ("unreadable", "unsafe"):
        text = f"the sibling {sibling.diagnosis.path} is {sibling.diagnosis.verdict}: nothing is compared with it"
        return [Finding("sibling", "note", "file", "", text)]
    with ours.contents.open() as our_file, sibling.contents.open() as their_file:
        for name, partner in pairs.items():
            located = ours.layout.tensors[name]
            if located.part not in _COMPARED or {name, partner.name} & sick or not _comparable(located, partner):
                continue
            moved = relative_distance(our_file, located, their_file, partner)
            if moved > DRIFT:
                text = f"moved by {moved:.3g} times its own norm away from the sibling"
                found.append(Finding("drift", "note", located.part, name, text, located.tensor.num_values))
    return found


def told_apart(findings: Iterable[Finding], ours: Examined, sibling: Examined) -> list[Finding]:
    """The same findings, with a word where the sibling's values of the tensor are finite."""
    pairs = partners(ours.layout.tensors, sibling.layout.tensors)
    theirs = {finding.name for finding in sibling.diagnosis.sick}
    return [
        replace(finding, text=f"{finding.text}; finite in the sibling")
        if finding.code in ("nan", "inf") and finding.name in pairs and pairs[finding.name].name not in theirs
        else finding
        for finding in findings
    ]


def relative_distance(our_file: TensorFile, ours: Located, their_file: TensorFile, theirs: Located) -> float:
    """Norm of the difference over the norm of the sibling; 0 for equal ones."""
    distance = norm = 0.0
    pieces = zip(
        our_file.pieces(ours.tensor, PIECE_VALUES), their_file.pieces(theirs.tensor, PIECE_VALUES), strict=True
    )
    for mine, other in pieces:
        distance += float((mine.double() - other.double()).square().sum())
        norm += float(other.double().square().sum())
    return 0.0 if distance == 0 else math.sqrt(distance / norm) if norm else math.inf


def _comparable(ours: Located, theirs: Located) -> bool:
    a, b = ours.tensor, theirs.tensor
    floating = a.dtype.is_floating_point and a.dtype == b.dtype and a.dtype.itemsize > 1
    return floating and a.shape == b.shape and a.stride == b.stride and a.is_dense and a.num_values > 1


def _names(ours: Examined, sibling: Examined, pairs: Mapping[str, Located]) -> Iterator[Finding]:
    reached = {partner.name for partner in pairs.values()}
    for name, located in ours.layout.tensors.items():
        partner = pairs.get(name)
        if partner is None and located.part in _COMPARED:
            yield Finding("extra", "note", located.part, name, "the sibling has no such tensor")
        elif partner is not None and partner.tensor.shape != located.tensor.shape:
            shapes = f"{list(located.tensor.shape)}, the sibling's has {list(partner.tensor.shape)}"
            yield Finding("other_shape", "sick", located.part, name, f"has shape {shapes}")
    for name, located in sibling.layout.tensors.items():
        if name not in reached and located.part in _COMPARED:
            yield Finding("missing", "sick", located.part, name, "is in the sibling and not here")
