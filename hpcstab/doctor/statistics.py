"""The ladder of BatchNorm: a sibling's statistics, an estimate, those of another checkpoint, mean 0 and variance 1.

An estimate on clean batches comes before what another checkpoint of the run holds, since it belongs to the weights as
they are. Channels do not depend on each other: those that are sound keep what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hpcstab.doctor.findings import How
from hpcstab.doctor.parts import Located
from hpcstab.doctor.patient import Patient
from hpcstab.doctor.sources import Sibling
from hpcstab.errors import CheckpointError

Reestimate = Callable[[Path, Mapping[str, Tensor], Sequence[str]], Mapping[str, tuple[Tensor, Tensor]]]
"""(checkpoint folder, network state with the sick statistics reset, layers) -> layer: (mean, variance).

Layers that could not be estimated are left out. Raises CheckpointError where the model cannot be built here.
"""
Pair = tuple[Tensor, Tensor]

_WHOLE = {"damaged", "zero_variance", "absurd", "at_the_edge"}
"""Findings that leave no channel of a layer to be trusted."""
_NETWORK = "network."
_KEPT = "batchnorm.kept."


def mend_statistics(patient: Patient, reestimate: Reestimate | None) -> None:
    """Give every sick layer sound statistics."""
    sick = patient.sick("batchnorm")
    for located in sick:
        if located.role == "count":
            _mend_count(patient, located)
    layers = list(dict.fromkeys(located.layer for located in sick if located.role != "count"))
    asked = [layer for layer in layers if _of_sibling(patient, layer, patient.sibling) is None]
    estimates = _estimates(patient, asked, reestimate)
    for layer in sorted(layers, key=lambda layer: layer.startswith(_KEPT)):
        mend_layer(patient, layer, estimates)


def mend_layer(patient: Patient, layer: str, estimates: Mapping[str, Pair]) -> None:
    """Take the first rung that holds, for the sick channels of one layer."""
    mean, variance = _pair(patient, layer)
    bad = _bad_channels(patient, mean, variance)
    how, pair, source = _rung(patient, layer, estimates)
    for located, value in zip((mean, variance), pair, strict=True):
        kept = patient.file.read(located.tensor)
        patient.set(located, torch.where(bad, value.to(kept.dtype), kept))
    patient.note(mean, how, 2 * int(bad.sum()), name=layer or "(the layer)", source=source)


def _rung(patient: Patient, layer: str, estimates: Mapping[str, Pair]) -> tuple[How, Pair, str]:
    """(how, mean and variance, where from)."""
    pair = _of_sibling(patient, layer, patient.sibling)
    if pair is not None and patient.sibling is not None:
        return "restored", pair, patient.sibling.name
    if layer in estimates:
        return "reestimated", estimates[layer], ""
    pair = _of_own_network(patient, layer)
    if pair is not None:
        kept = layer.startswith(_KEPT)
        return ("restored", pair, "the network of this checkpoint") if kept else ("averaged anew", pair, "")
    pair = _of_sibling(patient, layer, patient.own_run)
    if pair is not None and patient.own_run is not None:
        return "restored", pair, patient.own_run.name
    return "reset", (torch.zeros(()), torch.ones(())), ""


def _pair(patient: Patient, layer: str) -> tuple[Located, Located]:
    found = {each.role: each for each in patient.tensors.values() if each.layer == layer and each.role != "count"}
    return found["mean"], found["variance"]


def _of_sibling(patient: Patient, layer: str, sibling: Sibling | None) -> Pair | None:
    if sibling is None:
        return None
    mean, variance = (sibling.value(each) for each in _pair(patient, layer))
    return None if mean is None or variance is None else (mean, variance)


def _of_own_network(patient: Patient, layer: str) -> Pair | None:
    """For a copy of a layer's statistics, that of an average or of the last check that it passed: the layer's own."""
    pair = _pair(patient, layer)
    if layer.startswith(_KEPT):
        inside = f"{_NETWORK}{layer.removeprefix(_KEPT)}"
        own = [patient.tensors.get(f"{inside}.{name}") for name in ("running_mean", "running_var")]
        mean, variance = (None if each is None else patient.current(each) for each in own)
    elif pair[0].part == "ema":
        mean, variance = (patient.behind(each) for each in pair)
    else:
        return None
    return None if mean is None or variance is None else (mean, variance)


def _bad_channels(patient: Patient, mean: Located, variance: Located) -> Tensor:
    if any(_WHOLE & patient.codes.get(each.name, set()) for each in (mean, variance)):
        return torch.ones(mean.tensor.shape, dtype=torch.bool)
    found, spread = patient.file.read(mean.tensor), patient.file.read(variance.tensor)
    return ~(found.isfinite() & spread.isfinite() & (spread >= 0))


def _estimates(patient: Patient, layers: Sequence[str], reestimate: Reestimate | None) -> Mapping[str, Pair]:
    """Statistics estimated anew for layers of our own network, where the model is known and its weights are sound."""
    asked = [layer for layer in layers if layer.startswith(_NETWORK)]
    sound = not any(finding.part == "weights" for finding in patient.plan.left)
    if not asked or reestimate is None or patient.ours.contents.manifest is None or not sound:
        return {}
    state = {}
    for name, located in patient.tensors.items():
        if name.startswith(_NETWORK):
            current = patient.current(located)
            state[name.removeprefix(_NETWORK)] = patient.file.read(located.tensor) if current is None else current
    for layer in asked:
        mean, variance = _pair(patient, layer)
        bad = _bad_channels(patient, mean, variance)
        for located, fresh in ((mean, 0.0), (variance, 1.0)):
            state[located.name.removeprefix(_NETWORK)].masked_fill_(bad, fresh)
    try:
        found = reestimate(patient.ours.diagnosis.path, state, [layer.removeprefix(_NETWORK) for layer in asked])
    except CheckpointError as error:
        patient.plan.advice.append(f"statistics could not be estimated anew: {error}")
        return {}
    return {f"{_NETWORK}{layer}": pair for layer, pair in found.items()}


def _mend_count(patient: Patient, located: Located) -> None:
    """How many batches a layer has seen: the same for all layers of a network."""
    if patient.restore([located], patient.sibling):
        return
    sound = [each for each in patient.tensors.values() if each.role == "count" and each.name not in patient.codes]
    patient.set(located, patient.file.read(sound[0].tensor) if sound else torch.zeros((), dtype=torch.int64))
    meaning = f"as in {sound[0].name}" if sound else "counts from 0"
    patient.note(located, "reset", 1, meaning=f"{meaning}; only a layer with momentum None reads it")
