"""What is to be changed in a sick checkpoint: a ladder for each part, its first rung that holds."""

from __future__ import annotations

import torch

from hpcstab.doctor.contents import TensorFile
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.findings import Change
from hpcstab.doctor.patient import Patient, Plan
from hpcstab.doctor.sources import Sibling
from hpcstab.doctor.statistics import Reestimate, mend_layer, mend_statistics

FRESH_LOSS_SCALE = 65536.0
"""What torch.amp.GradScaler begins with; it finds the right one within a few steps."""
_ADAGRAD = {"step", "sum"}
"""It makes its state when it is built, not when it first steps: an empty one would stop it; it goes to 0 in place."""


def make_plan(
    ours: Examined,
    file: TensorFile,
    sibling: Sibling | None,
    own_run: Sibling | None,
    reestimate: Reestimate | None,
) -> Plan:
    """Decide for each sick tensor where sound values come from.

    The order matters: statistics are estimated with the weights as they will be, averages begin anew from both.
    """
    patient = Patient(ours, file, sibling, own_run)
    _weights(patient)
    _optimizer(patient)
    _scaler(patient)
    mend_statistics(patient, reestimate)
    _averages(patient)
    _numbers(patient)
    _file(patient)
    return patient.plan


def _weights(patient: Patient) -> None:
    for located in [*patient.sick("weights"), *patient.sick("other")]:
        if not patient.restore([located], patient.sibling):
            patient.give_up(located.name)


def _optimizer(patient: Patient) -> None:
    for owner in dict.fromkeys(located.owner or located.name for located in patient.sick("optimizer")):
        members = [each for each in patient.tensors.values() if owner in (each.owner, each.name)]
        if patient.restore(members, patient.sibling, patient.own_run):
            continue
        num_values = sum(member.tensor.num_values for member in members)
        if {member.name.rpartition(".")[2] for member in members} == _ADAGRAD:
            for member in members:
                patient.set(member, torch.zeros(()))
            patient.note(members[0], "dropped", num_values, name=owner)
            continue
        owned = patient.ours.layout.owned.get(owner)
        if owned is None or not patient.plan.edits.empty_entry(patient.ours.contents, *owned):
            patient.give_up(*(member.name for member in members))
            continue
        patient.note(members[0], "dropped", num_values, name=owner)


def _scaler(patient: Patient) -> None:
    for located in patient.sick("scaler"):
        if not patient.restore([located], patient.sibling, patient.own_run):
            patient.set(located, torch.full(located.tensor.shape, FRESH_LOSS_SCALE))
            patient.note(located, "reset", 1, meaning="the scale that a fresh scaler begins with")


def _averages(patient: Patient) -> None:
    averages = patient.sick("ema")
    for layer in dict.fromkeys(located.layer for located in averages if located.layer):
        mend_layer(patient, layer, {})
    for located in averages:
        if located.layer or patient.restore([located], patient.sibling, patient.own_run):
            continue
        value = patient.behind(located)
        if value is None:
            patient.give_up(located.name)
            continue
        patient.set(located, value)
        patient.note(located, "averaged anew", located.tensor.num_values)


def _numbers(patient: Patient) -> None:
    """Learning rates and loss scales that are Python floats."""
    for name, (part, number) in patient.ours.layout.numbers.items():
        if name not in patient.codes:
            continue
        found = [each.number(name) for each in (patient.sibling, patient.own_run) if each is not None]
        value = next((each for each in found if each is not None), FRESH_LOSS_SCALE if part == "scaler" else None)
        if value is None or not patient.plan.edits.set_float(patient.ours.contents, number, value):
            patient.give_up(name)
            continue
        patient.plan.changes.append(Change(name, part, "reset", 1, f"is {value:g} now, it was {number}"))


def _file(patient: Patient) -> None:
    """A checksum of the whole file is right again in a copy, where the tensors that it is wrong of are mended."""
    mended = any("damaged" in codes for name, codes in patient.codes.items() if name in patient.tensors)
    for finding in patient.ours.diagnosis.sick:
        handled = finding.name in patient.tensors or finding.name in patient.ours.layout.numbers
        if not handled and not (finding.code == "checksum" and mended):
            patient.plan.left.append(finding)
