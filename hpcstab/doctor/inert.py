"""A pickle read without running anything in it: what it would build is described, what it would call is listed.

``pickle`` looks names up and calls what it finds. Here no name is looked up: it leads to an inert stand-in that takes
any arguments, keeps them, and does nothing. Plain containers become themselves, and torch's rebuilding functions make
descriptions of tensors (:mod:`hpcstab.doctor.rebuilt`). The machine below is the one of the standard library that is
written in Python, since it can be watched: it is known which bytes of the pickle fill which dict.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

from hpcstab.doctor.contents import End
from hpcstab.doctor.rebuilt import REBUILT

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # protocols 0 to 2 name modules so
_STANDARD = set(sys.stdlib_module_names) | {"nt", "posix", "commands", "cPickle", "urllib2"}
_PLAIN: dict[str, str] = {
    "pathlib": "PosixPath WindowsPath PurePosixPath PureWindowsPath Path PurePath",
    "pathlib._local": "PosixPath WindowsPath PurePosixPath PureWindowsPath Path PurePath",
    "datetime": "datetime date time timedelta timezone",
    "collections": "Counter deque ChainMap UserDict UserList",
    "argparse": "Namespace",
    "builtins": "range slice object",
    "types": "SimpleNamespace",
    "functools": "partial",
    "logging": "getLogger",
    "re": "_compile",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID",
    "zoneinfo": "ZoneInfo ZoneInfo._unpickle",
    "torch": "device per_tensor_affine per_channel_affine per_tensor_symmetric per_channel_symmetric",
    "torch.jit._pickle": "build_tensor_from_id restore_type_tag build_intlist build_doublelist build_boollist",
    "torch.serialization": "_get_layout",
    "numpy": "dtype ndarray",
    "numpy.dtypes": "Float16DType Float32DType Float64DType Int32DType Int64DType UInt32DType UInt64DType BoolDType",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy._core.numeric": "_frombuffer",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
}
"""Names whose call makes data and does nothing else: no reason for a word."""
_PLAIN_NAMES = {module: set(names.split()) for module, names in _PLAIN.items()}


class Inert:
    """What stands for an object of a class that was not looked up: the arguments and the state it would get."""

    def __new__(cls, *args: Any, **named: Any) -> Inert:
        made = super().__new__(cls)
        made.__dict__.update(inert_args=[*args, *named.values()], inert_items={}, inert_state=None)
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__["inert_state"] = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__["inert_items"][key] = value

    def append(self, item: Any) -> None:
        items = self.__dict__["inert_items"]
        items[len(items)] = item

    def extend(self, items: Any) -> None:
        for item in items:
            self.append(item)

    add = append
    update = extend

    def parts(self) -> dict[Any, Any]:
        """All that it was given: arguments, items, and the attributes of its state."""
        known = self.__dict__
        state = known["inert_state"]
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # the slots of its class
            state = {**(state[0] or {}), **state[1]}
        if not isinstance(state, dict):
            state = {} if state is None else {"state": state}
        return {**dict(enumerate(known["inert_args"])), **known["inert_items"], **state}


_MACHINE: Any = pickle._Unpickler


class InertUnpickler(_MACHINE):  # type: ignore[misc]
    """Reads one pickle, from where ``file`` stands.

    Args:
        storage: gives what stands for a persistent id, torch's way to refer to the bytes of a tensor.

    Attributes:
        calls: functions that loading it would call, each once; none of them was looked up.
        classes: names that loading it would import, and that torch.load(weights_only=True) refuses.
        ends: for each dict by ``id``, the place behind the last of its entries.
        floats: for each float by ``id``, the place of its eight bytes.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_MACHINE.dispatch)

    def __init__(self, file: BinaryIO, storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="utf-8", errors="backslashreplace")
        self.persistent_load = storage
        self.calls: list[str] = []
        self.classes: list[str] = []
        self.ends: dict[int, End] = {}
        self.floats: dict[int, int] = {}
        self._kept: list[Any] = []  # or an id would be given twice
        self._file = file
        self._frame_length_at: int | None = None
        self._known: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name) = (_PYTHON_2.get(module, module), name)
        if key not in self._known:
            self._known[key] = REBUILT[key] if key in REBUILT else self._inert(module, name)
        return self._known[key]

    def get_extension(self, code: int) -> None:
        self.append(self.find_class("copyreg", f"extension {code}"))

    def _inert(self, module: str, name: str) -> type:
        """A class that stands for a name. To be called is harmless where it is plain, or is a class by its name.

        A class of another package is no function that a pickle would misuse; of the standard library all
        names but those known to be plain count, since nobody can list what is dangerous there.
        """
        full = f"{module}.{name}"
        rebuilds = module in ("torch._utils", "torch._tensor") and name.startswith("_rebuild_")
        plain = rebuilds or name in _PLAIN_NAMES.get(module, ())
        standard = module.split(".")[0] in _STANDARD
        harmless = plain or not (standard or _is_function(name))
        calls = self.calls

        def note_call(what: str) -> None:
            if what not in calls:
                calls.append(what)

        class Watched(type):
            def __call__(cls, *args: Any, **named: Any) -> Any:
                if not harmless:
                    note_call(full)
                return super().__call__(*args, **named)

        def call_result(_: Inert, *args: Any) -> Inert:
            note_call(f"the result of {full}")
            return _Result(*args)

        if not (plain and module.split(".")[0] == "torch"):
            self.classes.append(full)
        return Watched(full, (Inert,), {"__call__": call_result})

    def _place(self) -> int:
        frame = self._unframer.current_frame
        return int(self._file.tell() - (len(frame.getbuffer()) - frame.tell() if frame else 0))

    def _remember_end(self) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            self._kept.append(target)
            in_frame = self._unframer.current_frame is not None
            self.ends[id(target)] = End(self._place(), self._frame_length_at if in_frame else None)

    def load_setitems(self) -> None:
        super().load_setitems()
        self._remember_end()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_setitem(self) -> None:
        super().load_setitem()
        self._remember_end()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_binfloat(self) -> None:
        super().load_binfloat()
        self._kept.append(self.stack[-1])
        self.floats[id(self.stack[-1])] = self._place() - 8

    dispatch[pickle.BINFLOAT[0]] = load_binfloat

    def load_frame(self) -> None:
        self._frame_length_at = self._file.tell()
        super().load_frame()

    dispatch[pickle.FRAME[0]] = load_frame

    def load_build(self) -> None:
        """State goes into stand-ins alone; torch's attributes of a dict say nothing about numbers."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


class _Result(Inert):
    """What a call would give; it may be called again."""

    def __call__(self, *args: Any) -> Inert:
        return _Result(*args)


def _is_function(name: str) -> bool:
    last = name.rpartition(".")[2]
    return not (last.startswith("__pyx_unpickle_") or last.lstrip("_")[:1].isupper())
