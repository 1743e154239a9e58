"""A safetensors file: its header says where each tensor lies; the library has the last word on whether it is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import torch

from hpcstab.doctor.contents import Contents, Record, StoredTensor
from hpcstab.doctor.recognise import unreadable

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LENGTH_BYTES = 8


def read_safetensors(path: Path) -> Contents:
    """The file without its tensors' bytes. The format keeps no checksum: a flipped bit in a value shows only there."""
    contents = Contents("safetensors file", path, path.stat().st_size)
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        raw = file.read(header_bytes)
    if len(raw) < header_bytes:
        contents.findings.append(unreadable("truncated", f"is cut off: its header alone has {header_bytes} bytes"))
        return contents
    try:
        header = json.loads(raw)
        tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
        needed = _LENGTH_BYTES + header_bytes + max((facts["data_offsets"][1] for facts in tensors.values()), default=0)
        if needed > contents.num_bytes:
            text = f"is cut off: its header speaks of {needed} bytes, there are {contents.num_bytes}"
            contents.findings.append(unreadable("truncated", text))
            return contents
        with safetensors.safe_open(path, framework="pt"):
            pass  # checks that tensors follow each other, and that shapes and types make their sizes
        contents.tree = {
            name: _tensor(contents, name, facts, _LENGTH_BYTES + header_bytes) for name, facts in tensors.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, safetensors.SafetensorError) as error:
        contents.findings.append(unreadable("damaged_header", f"its header is damaged: {error}"))
    return contents


def _tensor(contents: Contents, name: str, facts: Any, data_start: int) -> StoredTensor | None:
    """The description of a tensor, and its bytes as a record; None for a type that this version does not know."""
    first, last = facts["data_offsets"]
    contents.records[name] = Record(name, data_start + first, last - first)
    dtype, shape = _DTYPES.get(facts["dtype"]), tuple(facts["shape"])
    if dtype is None:
        return None
    return StoredTensor(dtype, shape, torch.empty(shape, device="meta").stride(), name, 0)
