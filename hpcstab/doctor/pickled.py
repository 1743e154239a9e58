"""A pickle of torch, and what there is to say about loading it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from hpcstab.doctor.contents import Pickled
from hpcstab.doctor.findings import Finding
from hpcstab.doctor.inert import InertUnpickler
from hpcstab.doctor.rebuilt import StoredStorage, storage_of
from hpcstab.doctor.recognise import unreadable

_MAX_NAMED = 8


class Trouble(Exception):  # noqa: N818 - it is caught in this room and becomes a finding
    """Ends the reading of a file with findings: why, and what was found until then."""

    def __init__(self, finding: Finding, *before: Finding) -> None:
        super().__init__(finding.text)
        self.findings = [*before, finding]


@dataclass(frozen=True)
class Description:
    """What a pickle describes; ``storages`` are those it refers to, by record."""

    tree: Any
    pickled: Pickled
    findings: list[Finding]
    storages: dict[str, StoredStorage]


def read_pickle(
    file: BinaryIO, record_of: Callable[[str], str], objects: Mapping[str, Any] | None = None
) -> Description:
    """Read one pickle from where ``file`` stands.

    Args:
        record_of: the name of the record that holds the storage with a key.
        objects: what stands for persistent ids that are no storages.

    Raises:
        Trouble: it is damaged.
    """
    storages: dict[str, StoredStorage] = {}

    def storage(pid: Any) -> Any:
        known = storage_of(pid)
        if known is None:
            return (objects or {}).get(str(pid))
        known = replace(known, record=record_of(known.record))
        storages[known.record] = known
        return known

    unpickler = InertUnpickler(file, storage)
    try:
        tree = unpickler.load()
    except Exception as error:  # a damaged pickle fails in any way there is
        text = f"its description of the tensors is damaged ({type(error).__name__}: {error})"
        # what stands before the damage would have run all the same
        raise Trouble(unreadable("damaged_pickle", text), *_about_names(unpickler)) from None
    pickled = Pickled(unpickler.ends, unpickler.floats)
    return Description(tree, pickled, list(_about_names(unpickler)), storages)


def _about_names(unpickler: InertUnpickler) -> list[Finding]:
    found = []
    if unpickler.calls:
        text = f"loading it with pickle would call {_named(unpickler.calls)}; nothing of it was executed here"
        found.append(Finding("unsafe", "unsafe", "file", "", text))
    classes = [name for name in unpickler.classes if name not in unpickler.calls]
    if classes:
        text = (
            f"holds {_named(classes)}: torch.load(weights_only=True) refuses that unless told otherwise; the tensors"
            " were scanned without it"
        )
        found.append(Finding("unknown_classes", "note", "file", "", text))
    return found


def _named(names: list[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
