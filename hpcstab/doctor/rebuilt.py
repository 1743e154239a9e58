"""What stands for the names that torch.save writes, so that a tensor becomes a description of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hpcstab.doctor.contents import StoredTensor

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QUInt8Storage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
    "UntypedStorage": torch.uint8,
    "_UntypedStorage": torch.uint8,
}


class PlainDict(dict[Any, Any]):
    """An OrderedDict, or a dict with a factory."""


@dataclass(frozen=True)
class StoredStorage:
    """The bytes that a persistent id refers to: the record's name, and what they are where the storage has a type."""

    record: str
    dtype: torch.dtype
    first: int = 0


def storage_of(pid: Any) -> StoredStorage | None:
    """``("storage", type, key, location, number of elements[, view])`` as torch writes it; None for another id."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
        return None
    view = pid[5] if len(pid) > 5 else None
    return StoredStorage(str(pid[2]), pid[1], view[1] if view else 0)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor | None:
    if not isinstance(storage, StoredStorage):
        return None
    shape, steps = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    return StoredTensor(storage.dtype, shape, steps, storage.record, storage.first + int(offset))


def _tensor_v3(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor | None:
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), torch.uint8)
    if not isinstance(storage, StoredStorage):
        return None
    return _tensor(StoredStorage(storage.record, dtype), offset, size, stride)


def _first(data: Any, *_: Any) -> Any:
    return data


def _sparse(_: Any, data: Any) -> dict[str, Any]:
    tensors = [each for each in data if isinstance(each, StoredTensor)]
    names = ("indices", "values") if len(tensors) == 2 else ("compressed", "plain", "values")  # COO, CSR and the like
    return dict(zip(names, tensors, strict=False))


def _of_type(function: Callable[..., Any], _: Any, args: Any, *__: Any) -> Any:
    return function(*args)


def _reconstructor(cls: Any, *_: Any) -> Any:
    return cls.__new__(cls)


def _dict_of_factory(*_: Any) -> PlainDict:
    return PlainDict()


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1", "replace")


def _bytes(source: Any = b"", *_: Any) -> bytes:
    return bytes(source) if isinstance(source, bytes | bytearray | list) else b""  # of a number: so many zeros


_BUILTINS = [set, frozenset, list, dict, tuple, int, float, complex, bool, str]
REBUILT: dict[tuple[str, str], Any] = {
    **{("builtins", each.__name__): each for each in _BUILTINS},
    **{("builtins", name): _bytes for name in ("bytes", "bytearray")},
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
    **{
        (module, name): dtype
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGE_DTYPES.items()
    },
    ("collections", "OrderedDict"): PlainDict,
    ("collections", "defaultdict"): _dict_of_factory,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("_codecs", "encode"): _encode,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_qtensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}
"""(module, name) -> what a pickle gets for it. Nothing here can do more than make a plain value."""
