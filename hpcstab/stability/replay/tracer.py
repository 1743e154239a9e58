"""A dispatch mode that watches every operation of one step, forward and backward, for the first non-finite value.

It reads each result from the device, so it belongs into a replay and never into a training.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from hpcstab.stability.replay.lineage import Lineage, has_nan, is_finite, is_mask, same_memory
from hpcstab.stability.replay.operations import Direction, Kind, Operation, Place, facts_of, family_of, place_here

ROOT_MODULE = "(network)"
_UNINITIALISED = {
    "empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "resize",
}  # fmt: skip
_READS_NO_VALUES = {"full_like", "new_full", "zeros_like", "ones_like", *_UNINITIALISED}
_OVERWRITES = {
    "copy", "fill", "zero", "normal", "uniform", "bernoulli", "random", "exponential", "log_normal", "cauchy",
}  # fmt: skip
_PICKS = {
    "index", "index_select", "gather", "take", "masked_select", "embedding", "topk", "sort", "unfold", "slice",
    "select", "max_pool2d_with_indices", "max_pool3d_with_indices", "_to_copy", "clone",
}  # fmt: skip
"""Operations with fewer values out than in that only choose among them."""


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block every operation whose output is not finite is recorded, with where its values come from.

    Modules are followed by plain forward hooks: full backward hooks would refuse in-place activations. A backward
    operation finds its forward operation, and with it line and module, by the autograd node's sequence number.

    Args:
        network: gives modules their paths.
        num_samples: B, the leading dimension of the batch, to tell which samples a value belongs to.
    """

    def __init__(self, network: nn.Module, num_samples: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._paths = {module: path or ROOT_MODULE for path, module in network.named_modules()}
        self._num_samples = num_samples
        self._lineage: Lineage[Operation] = Lineage()
        self._modules: list[tuple[str, bool]] = []
        self._sequence: list[int] = []
        self._forward: list[tuple[str, str, Place | None]] = []
        self._count = 0
        self._hooks = contextlib.ExitStack()

    def __enter__(self) -> Tracer:
        entering = register_module_forward_pre_hook(self._enter_module)
        leaving = register_module_forward_hook(self._leave_module, always_call=True)
        self._hooks.callback(entering.remove)
        self._hooks.callback(leaving.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def know(self, kind: Kind, name: str, tensor: Tensor) -> Operation | None:
        """Give a tensor that was there before the step a name; None where it is finite."""
        if is_finite(tensor):
            return None
        innocent = kind == "state" and is_mask(tensor) and not tensor.requires_grad  # nobody trains a mask
        leaf = Operation(-1, kind, name, outputs=(facts_of(name, tensor),), innocent=innocent)
        if kind == "input":
            leaf.samples = self._samples([tensor])
        self._lineage.mark(tensor, leaf)
        return leaf

    def origins_of(self, tensor: Tensor) -> list[Operation]:
        """What wrote the non-finite values of a tensor."""
        return self._lineage.labels_of(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        family = family_of(str(func))
        direction, node = self._note_forward(func)
        named = list(_named_tensors(func, args, kwargs))
        written = [(name, tensor) for name, tensor, writes in named if writes]
        read = [(name, tensor) for name, tensor, writes in named if not (writes and _is_overwritten(func, family))]
        read = [] if family in _READS_NO_VALUES else read
        bad_before = [tensor for _, tensor, _ in named if not is_finite(tensor)]
        poisoned = [tensor for _, tensor in read if _holds(bad_before, tensor)]
        parents = self._parents(poisoned, func, direction, node)
        before = {id(tensor): tensor.detach().clone() for _, tensor in written}  # in-place: its range before
        result = func(*args, **kwargs)
        self._count += 1

        # whatever an operation wrote without saying so
        touched = [tensor for _, tensor, writes in named if writes or not _holds(bad_before, tensor)]
        bad = [tensor for tensor in _distinct([*_tensors(result), *touched]) if not is_finite(tensor)]
        for _, tensor in written:
            if is_finite(tensor):
                self._lineage.clear(tensor)
        is_view = not written and all(any(same_memory(tensor, each) for each in poisoned) for tensor in bad)
        if not bad or is_view:
            return result
        operation = self._operation(func, direction, node)
        operation.parents = tuple(parents)
        operation.scalars = _scalars(func, args, kwargs)
        operation.inputs = tuple(facts_of(name, before.get(id(tensor), tensor)) for name, tensor in read)
        operation.outputs = tuple(facts_of("output", tensor) for tensor in bad)
        operation.kind, operation.innocent = _kind_of(operation, poisoned, bad)
        operation.samples = self._samples([*bad, *(before.get(id(tensor), tensor) for _, tensor in read)])
        for tensor in bad:
            self._lineage.mark(tensor, operation)
        return result

    def _operation(self, func: Any, direction: Direction, node: Any) -> Operation:
        """The record of an operation, without what it held."""
        if direction == "forward":
            module, place = self._module(), place_here(in_backward=False)
            return Operation(self._count, "propagated", str(func), module=module, place=place)
        source, module, place = self._forward_of(node)
        own = place_here(in_backward=True)
        return Operation(
            self._count, "propagated", str(func), "backward", node.name() if node else "", source, module, own or place
        )

    def _parents(self, poisoned: Sequence[Tensor], func: Any, direction: Direction, node: Any) -> list[Operation]:
        parents: list[Operation] = []
        for tensor in poisoned:
            known = self._lineage.labels_of(tensor)
            if not known:
                stranger = self._operation(func, direction, node)
                stranger.kind, stranger.outputs = "outside", (facts_of("tensor", tensor),)
                stranger.innocent = not has_nan(tensor)
                self._lineage.mark(tensor, stranger)
                known = [stranger]
            parents += [each for each in known if each not in parents]
        return parents

    def _note_forward(self, func: Any) -> tuple[Direction, Any]:
        """Direction and autograd node of the operation that is about to run; remembers forward ones by number."""
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward and not any(entered for _, entered in self._modules):
            return "backward", torch._C._current_autograd_node()
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        if not in_backward and (not self._sequence or number > self._sequence[-1]):
            self._sequence.append(number)
            self._forward.append((str(func), self._module(), place_here(in_backward=False)))
        return "forward", None

    def _forward_of(self, node: Any) -> tuple[str, str, Place | None]:
        """(operation, module, line) that made an autograd node, or the last one before it."""
        if node is None or "AccumulateGrad" in node.name():
            return "", "", None
        position = bisect.bisect_right(self._sequence, node._sequence_nr()) - 1
        return self._forward[position] if position >= 0 else ("", "", None)

    def _module(self) -> str:
        return self._modules[-1][0] if self._modules else ""

    def _enter_module(self, module: nn.Module, inputs: Any) -> None:
        recomputed = torch._C._current_graph_task_id() != -1  # activation checkpointing runs forwards in the backward
        self._modules.append((self._paths.get(module, type(module).__name__), recomputed))

    def _leave_module(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        self._modules.pop()

    def _samples(self, tensors: Sequence[Tensor]) -> tuple[int, ...]:
        """Samples with a non-finite value in the first tensor whose leading dimension is that of the batch.

        Leading dimensions that are a multiple of it count too (blocks or heads of a sample); none where all are bad.
        """
        for tensor in tensors:
            if tensor.ndim and tensor.shape[0] and tensor.shape[0] % self._num_samples == 0 and not is_finite(tensor):
                rows = (~tensor.isfinite()).reshape(self._num_samples, -1).any(dim=1)
                found = tuple(rows.nonzero().flatten().tolist())
                return found if len(found) < self._num_samples else ()
        return ()


def _kind_of(operation: Operation, poisoned: Sequence[Tensor], bad: Sequence[Tensor]) -> tuple[Kind, bool]:
    """(kind, innocent) of an operation whose output ``bad`` is not finite.

    Infinities that the code asks for (a mask) are innocent until an operation makes NaN of them, or sums up over
    them without absorbing them.
    """
    family = operation.family
    if family in _UNINITIALISED:
        return "uninitialised", False
    makes_nan = any(map(has_nan, bad))
    if not poisoned:
        asked_for = any(math.isinf(value) for value in operation.scalars.values())
        return ("placed", True) if asked_for and not makes_nan else ("created", False)
    if not all(parent.innocent for parent in operation.parents):
        return "propagated", False
    shrinks = max(tensor.numel() for tensor in bad) < max(tensor.numel() for tensor in poisoned)
    if makes_nan or (shrinks and family not in _PICKS):
        return "created", False
    return "propagated", True


def _named_tensors(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor, bool]]:
    """(argument, tensor, is written) of an operation."""
    for argument, value in _bound(func, args, kwargs):
        said = argument.alias_info is not None and argument.alias_info.is_write
        writes = said or argument.name in ("running_mean", "running_var")  # BatchNorm's schema does not say so
        for tensor in _tensors(value):
            yield argument.name, tensor, writes


def _scalars(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, float]:
    return {
        argument.name: float(value)
        for argument, value in _bound(func, args, kwargs)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and argument.name != "dtype"
    }


def _bound(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args) and not argument.kwarg_only:
            yield argument, args[position]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _is_overwritten(func: Any, family: str) -> bool:
    return family in _OVERWRITES or func._overloadname.endswith("out")


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for each in value for tensor in _tensors(each)]
    return []


def _holds(tensors: Sequence[Tensor], tensor: Tensor) -> bool:
    return any(tensor is each for each in tensors)


def _distinct(tensors: Sequence[Tensor]) -> list[Tensor]:
    found: dict[int, Tensor] = {id(tensor): tensor for tensor in tensors}
    return list(found.values())
