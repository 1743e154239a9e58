"""What each tensor of a checkpoint is for, told by the structure around it.

BatchNorm and its like: ``running_mean`` and ``running_var`` side by side, of one shape. Optimizers: ``state`` and
``param_groups`` in one dict. GradScaler: its four keys. Only a moving average is known by its name alone, since it
looks like the weights. What stands beside the weights (callbacks, metrics, batches) is ``other``: nothing trains on
from it, and infinities are usual there (the best score before the first evaluation).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hpcstab.doctor.contents import Key, StoredTensor
from hpcstab.doctor.findings import Part
from hpcstab.doctor.inert import Inert

Role = Literal["mean", "variance", "count", "second moment", "step", "observer", "scale", ""]
_EMA = re.compile(r"(^|_)(ema|swa|teacher|shadow|averaged?)(_|$)|^averaging_state$")
_OTHER = re.compile(
    r"^(callbacks|loops|hyper_parameters|hparams\w*|lr_schedulers?|schedulers?|batch|random|rng\w*|\w+_rng|random_\w+"
    r"|status|metrics?|losses|history|guarding|objective|config|args)$"
)
_SCALER_KEYS = {"scale", "growth_factor", "backoff_factor", "growth_interval"}
_LOSS_SCALE_KEYS = {"value", "num_applied"}
_SECOND_MOMENTS = {
    "exp_avg_sq",
    "max_exp_avg_sq",
    "square_avg",
    "sum",
    "v",
    "exp_avg_sq_row",
    "exp_avg_sq_col",
    "acc_delta",
}
_ADOPTED = ("_parameters", "_buffers", "_modules")
"""Dicts of a pickled module, whose names are no part of a tensor's name."""


@dataclass(frozen=True)
class Located:
    """A tensor with its place in the file.

    ``name``: its dotted path. ``layer``: path of the normalisation layer that it is a statistic of. ``owner``: path of
    the optimizer state of one parameter. Both empty for all others. ``own_name``: without the part of the path that
    leads to the state dict, so that it can be looked up in another.
    """

    name: str
    own_name: str
    part: Part
    role: Role
    tensor: StoredTensor
    layer: str = ""
    owner: str = ""


@dataclass
class Layout:
    """All tensors of a checkpoint by name, and what else counts.

    ``owned``: for each parameter's optimizer state, by path, the dict that it is in and its key there. ``numbers``:
    Python floats that a training goes on from (loss scale, learning rates) by path, with their part.
    """

    tensors: dict[str, Located] = field(default_factory=dict)
    owned: dict[str, tuple[dict[Any, Any], Any]] = field(default_factory=dict)
    numbers: dict[str, tuple[Part, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Where:
    path: tuple[Key, ...] = ()
    part: Part = "weights"
    owner: str = ""
    root: int | None = None
    """How many keys of the path lead to the state dict; None outside of one."""

    def at(self, key: Any) -> _Where:
        return replace(self, path=(*self.path, key if isinstance(key, int) else str(key)))

    @property
    def name(self) -> str:
        return dotted(self.path)


def lay_out(tree: Any) -> Layout:
    """Find all tensors of a checkpoint and what each is for.

    Raises:
        RecursionError: the containers are nested more deeply than any training nests them.
    """
    layout = Layout()
    _Walk(layout).visit(tree, _Where())
    _mark_statistics(layout)
    return layout


def dotted(path: tuple[Key, ...]) -> str:
    return ".".join(str(key) for key in path if key not in _ADOPTED)


class _Walk:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._seen: set[int] = set()

    def visit(self, value: Any, where: _Where) -> None:
        if isinstance(value, StoredTensor):
            self._add(value, where)
            return
        if not isinstance(value, Mapping | list | tuple | set | frozenset | Inert) or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, Inert):
            value = value.parts()
        if isinstance(value, Mapping):
            self._visit_mapping(value, where)
            return
        for index, item in enumerate(value):
            self.visit(item, where.at(index))

    def _visit_mapping(self, value: Mapping[Any, Any], where: _Where) -> None:
        if isinstance(value.get("param_groups"), list) and isinstance(value.get("state"), Mapping):
            self._visit_optimizer(value, where)
            return
        if where.root is None and "_modules" in value:
            where = replace(where, root=len(where.path))
        if "n_averaged" in value and where.part == "weights":  # torch.optim.swa_utils.AveragedModel
            where = replace(where, part="ema")
        if value.keys() >= _SCALER_KEYS or value.keys() == _LOSS_SCALE_KEYS:
            where = replace(where, part="scaler")
            self._note_number(value.get("scale"), where.at("scale"))
        mixed = not all(isinstance(item, StoredTensor) for item in value.values())
        for key, item in value.items():
            inner = where.at(key)
            if isinstance(item, StoredTensor):
                alone = mixed and not item.shape and where.root is None and where.part == "weights"
                self.visit(item, replace(inner, part="other") if alone else inner)
                continue
            self.visit(item, replace(inner, part=_part_of(str(key), where), root=_root(inner, item)))

    def _visit_optimizer(self, value: Mapping[Any, Any], where: _Where) -> None:
        where = replace(where, part="optimizer")
        for key, state in value["state"].items():
            inner = where.at("state").at(key)
            self._layout.owned[inner.name] = (value["state"], key)
            self.visit(state, replace(inner, owner=inner.name))
        for index, group in enumerate(value["param_groups"]):
            if isinstance(group, Mapping):
                self._note_number(group.get("lr"), where.at("param_groups").at(index).at("lr"))
                self.visit(group, where.at("param_groups").at(index))

    def _note_number(self, value: Any, where: _Where) -> None:
        if isinstance(value, float):
            self._layout.numbers[where.name] = (where.part, value)

    def _add(self, tensor: StoredTensor, where: _Where) -> None:
        part, name = where.part, where.name
        own = dotted(where.path[where.root or 0 :])
        if part == "weights" and any(_EMA.search(segment) for segment in own.split(".")[:-1]):
            part = "ema"
        last = str(where.path[-1]).rpartition(".")[2] if where.path else ""
        role: Role = ""
        if part == "optimizer":
            role = "second moment" if last in _SECOND_MOMENTS else "step" if last == "step" else ""
        elif part == "scaler":
            role = "scale" if last in ("scale", "_scale", "value") else ""
        taken = 1
        while name in self._layout.tensors:  # {"a.b": ..., "a": {"b": ...}}
            taken += 1
            name = f"{where.name} ({taken})"
        self._layout.tensors[name] = Located(name, own, part, role, tensor, owner=where.owner)


def _part_of(key: str, where: _Where) -> Part:
    """What stands under a key of the outermost dict may be something else than weights."""
    if where.part != "weights":
        return where.part
    if _EMA.search(key):
        return "ema"
    return "other" if not where.path and _OTHER.match(key) else "weights"


def _root(where: _Where, value: Any) -> int | None:
    """A dict with a tensor in it begins the names of a state dict; lists never do."""
    if where.root is not None or not isinstance(value, Mapping):
        return where.root
    return len(where.path) if any(isinstance(item, StoredTensor) for item in value.values()) else None


def _mark_statistics(layout: Layout) -> None:
    """Give the statistics of normalisation layers their part, by the pairs that they come in."""
    for layer, mean, variance in _pairs(layout.tensors):
        ema = layout.tensors[mean].part == "ema"
        part: Part = "ema" if ema else "batchnorm"
        for name, role in ((mean, "mean"), (variance, "variance"), (_joined(layer, "num_batches_tracked"), "count")):
            if name in layout.tensors:
                layout.tensors[name] = replace(layout.tensors[name], part=part, role=role, layer=layer)  # type: ignore[arg-type]
    for name, located in list(layout.tensors.items()):
        stem, _, last = name.rpartition(".")
        if (
            last in ("min_val", "max_val")
            and {_joined(stem, "min_val"), _joined(stem, "max_val")} <= layout.tensors.keys()
        ):
            layout.tensors[name] = replace(located, role="observer")


def _pairs(tensors: Mapping[str, Located]) -> Iterator[tuple[str, str, str]]:
    for name, located in tensors.items():
        layer, _, last = name.rpartition(".")
        partner = _joined(layer, "running_var")
        if last == "running_mean" and partner in tensors and located.part in ("weights", "ema"):
            if tensors[partner].tensor.shape == located.tensor.shape:
                yield layer, name, partner
        elif name.startswith("batchnorm.kept.") and last == "0" and f"{layer}.1" in tensors:
            yield layer, name, f"{layer}.1"  # hpcstab keeps the statistics of the last check that a layer passed


def _joined(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name
