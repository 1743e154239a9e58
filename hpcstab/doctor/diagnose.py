"""One checkpoint -> what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hpcstab.doctor.contents import Contents
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.findings import Diagnosis, Finding
from hpcstab.doctor.parts import Layout, Located, lay_out
from hpcstab.doctor.paths import checkpoints_in
from hpcstab.doctor.reading import read_contents
from hpcstab.doctor.recognise import unreadable
from hpcstab.doctor.rules import Rules
from hpcstab.doctor.scan import Scanned, scan
from hpcstab.doctor.siblings import compare, told_apart
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError

_ORDER = {"file": 0, "batchnorm": 1, "weights": 2, "ema": 3, "optimizer": 4, "scaler": 5, "other": 6}


def diagnose(path: Path, against: Path | None = None) -> Diagnosis:
    """Look at one checkpoint: a file, or a folder with a manifest. A damaged or unreadable one is a finding, no error.

    Args:
        against: a sibling to compare names, shapes and norms with.

    Raises:
        CheckpointError: there is no such path, or it is a folder of several (exit code 2).
    """
    examined = examine(path)
    if against is None or examined.diagnosis.verdict == "unreadable":
        return examined.diagnosis
    sibling = examine(against)
    found = told_apart(examined.diagnosis.findings, examined, sibling)
    return replace(examined.diagnosis, findings=_sorted([*found, *compare(examined, sibling)]))


def examine(path: Path) -> Examined:
    """Read one checkpoint in one pass, and judge it."""
    meant = checkpoints_in(path)
    if len(meant) > 1:
        raise CheckpointError(
            f"{path}: is a folder of {len(meant)} checkpoints; name one", exit_code=EXIT_WRONG_REQUEST
        )
    contents = read_contents(meant[0])
    findings = list(contents.findings)
    try:
        layout = lay_out(contents.tree)
    except RecursionError:
        layout = Layout()
        findings.append(unreadable("too_deep", "nests its containers more deeply than any training does"))
    tensors = [located.tensor for located in layout.tensors.values()]
    num_values = 0
    if not any(finding.severity == "unreadable" for finding in findings):
        outside = _outside(contents, layout)
        findings += outside
        if not outside:
            scanned = _scan(contents, layout)
            num_values = sum(
                values.num_values for tensor, values in scanned.values.items() if tensor.dtype.is_floating_point
            )
            findings += _damage(contents, layout, scanned)
            if tensors:
                with contents.open() as file:
                    findings += Rules(layout, scanned.values, file).findings()
        if not tensors and contents.tree is not None:
            findings.append(Finding("no_tensors", "note", "file", "", "holds no tensor"))
    diagnosis = Diagnosis(
        meant[0], contents.kind, contents.num_bytes, len(tensors), num_values, contents.step, _sorted(findings)
    )
    return Examined(contents, layout, diagnosis)


def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By part, notes last."""
    return tuple(sorted(findings, key=lambda each: (each.severity == "note", _ORDER[each.part])))


def _scan(contents: Contents, layout: Layout) -> Scanned:
    """One pass: a manifest's SHA-256 stands for the format's own checksums, which only tell where it differs."""
    tensors = [located.tensor for located in layout.tensors.values()]
    if contents.manifest is None:
        return scan(contents, tensors)
    scanned = scan(contents, tensors, sha256=True, crc=False)
    if scanned.sha256 != contents.manifest["state_sha256"]:
        scanned.damaged = scan(contents, ()).damaged
    return scanned


def _outside(contents: Contents, layout: Layout) -> list[Finding]:
    """Tensors that reach beyond their record: its description and its bytes do not belong together."""
    found = []
    for located in layout.tensors.values():
        tensor = located.tensor
        record = contents.records.get(tensor.record)
        if record is None or tensor.first_byte < 0 or tensor.first_byte + tensor.num_bytes > record.num_bytes:
            what = (
                "has no record of its own"
                if record is None
                else f"needs more than the {record.num_bytes} bytes there are"
            )
            found.append(Finding("outside", "unreadable", located.part, located.name, f"is damaged: {what}"))
    return found


def _damage(contents: Contents, layout: Layout, scanned: Scanned) -> list[Finding]:
    """What checksums say: by tensor where they tell which."""
    found = []
    manifest = contents.manifest
    if manifest is not None and scanned.sha256 != manifest["state_sha256"]:
        text = "differs from what was written (SHA-256): a flipped bit, or somebody changed it"
        found.append(Finding("checksum", "sick", "file", "", text))
    owners: dict[str, list[Located]] = {}
    for located in layout.tensors.values():
        owners.setdefault(located.tensor.record, []).append(located)
    for record in scanned.damaged:
        text = f"its bytes differ from what was written (CRC of record '{record}'); torch.load does not notice"
        if record not in owners:
            found.append(Finding("damaged", "sick", "file", record, text))
        found += [
            Finding("damaged", "sick", located.part, located.name, text, located.tensor.num_values)
            for located in owners.get(record, ())
        ]
    return found
