"""Who made the first non-finite value of a step: an operation, the batch, or the state that it began with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from hpcstab.stability.gate.clipping import total_grad_norm
from hpcstab.stability.replay.failing_step import FailingStep, leaves
from hpcstab.stability.replay.lineage import is_finite, is_mask
from hpcstab.stability.replay.operations import Operation, facts_of
from hpcstab.stability.replay.tracer import Tracer

FindingKind = Literal[
    "created",  # an operation made it from finite inputs
    "placed",  # an infinity that the code asked for reached the loss as it was
    "uninitialised",  # memory was read that nobody wrote
    "input",  # it was in the batch
    "state",  # it was in parameters, buffers, optimizer state or moving average before the step
    "outside",  # it was in a tensor that no operation of the step made
    "norm_overflow",  # all gradients are finite, their norm is not
    "none",  # the step is finite
]
_MAX_NAMES = 20


@dataclass(frozen=True)
class Finding:
    """What a traced run of the step found.

    Attributes:
        target: what was bad: ``loss``, ``gradient``, ``gradient norm``, ``buffer`` or ``state``; empty for nothing.
        names: of the bad gradients, buffers or tensors of the state; of the largest gradient for a norm overflow.
        root: the creator; of kind ``input``, ``state`` or ``outside`` it stands for a tensor.
        path: operations that passed the value on, from the root to the target.
        others: further roots of the same target, in the order of execution.
        terms: loss terms that are not finite, or whose gradient is not.
    """

    kind: FindingKind
    target: str = ""
    names: tuple[str, ...] = ()
    root: Operation | None = None
    path: tuple[Operation, ...] = ()
    others: tuple[Operation, ...] = ()
    terms: tuple[str, ...] = ()
    samples: tuple[int, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.kind,
            "target": self.target or None,
            "names": list(self.names),
            "creator": self.root.as_json() if self.root else None,
            "path": [
                {
                    "operation": each.name,
                    "direction": each.direction,
                    "module": each.module,
                    "times_zero": each.is_times_zero,
                }
                for each in self.path
            ],
            "others": [{"operation": each.name, "kind": each.kind, "module": each.module} for each in self.others],
            "loss_terms": list(self.terms),
            "samples": list(self.samples),
        }


def find_creator(step: FailingStep) -> Finding:
    """What made the first non-finite value of the step; see :func:`_traced`.

    Of a batch that runs in micro-batches only bad inputs have their samples named: an operation does not know which
    part it is in. A value that passes through NumPy or a Python number loses its origin there (kind ``outside``).
    """
    finding = _traced(step)
    if step.num_parts > 1 and finding.kind != "input":
        return Finding(**{**vars(finding), "samples": ()})
    return finding


def _traced(step: FailingStep) -> Finding:
    """Run the step once under the tracer and follow what is not finite back to where it began.

    Looked at in the order in which a training meets them: loss, gradients, their norm, buffers, optimizer state.
    """
    step.rewind()
    with Tracer(step.network, step.num_samples) as tracer:
        for name, tensor in leaves(step.batch):
            tracer.know("input", name, tensor)
        for name, tensor in (*step.network.named_parameters(), *step.network.named_buffers()):
            tracer.know("state", name, tensor)
        loss, figures = step.gradients(step.batch, precision="recorded", term=None)
    bad_buffers = step.newly_bad_buffers()
    step.rewind_buffers()
    sick = sick_state(step)
    loss = loss.detach()
    if not is_finite(loss):
        terms = [name for name in step.terms if not is_finite(figures[f"loss_{name}"])]
        return _followed(tracer, "loss", [("loss", loss)], sick, terms)
    parameters = [(name, each) for name, each in step.network.named_parameters() if each.grad is not None]
    gradients = [(name, each.grad.detach()) for name, each in parameters if each.grad is not None]
    bad = [(name, gradient) for name, gradient in gradients if not is_finite(gradient)]
    if bad:
        finding = _followed(tracer, "gradient", bad, sick, ())
        return _with_terms(finding, step)
    if not is_finite(total_grad_norm(parameter for _, parameter in parameters)):
        name, largest = max(gradients, key=lambda each: float(each[1].abs().max()) if each[1].numel() else 0.0)
        root = Operation(-1, "created", name, "backward", outputs=(facts_of("gradient", largest),))
        return Finding("norm_overflow", "gradient norm", (name,), root)
    if bad_buffers:
        return _followed(tracer, "buffer", bad_buffers, sick, ())
    return Finding("state", "state", tuple(sick[:_MAX_NAMES])) if sick else Finding("none")


def sick_state(step: FailingStep) -> list[str]:
    """Names of parameters, buffers and optimizer state that are not finite; a mask of -inf is no sickness."""
    network = step.network
    named: list[tuple[str, Tensor]] = list(network.named_parameters())
    named += [(name, each) for name, each in network.named_buffers() if _is_statistic(name) or not is_mask(each)]
    named += [(f"ema.{name}", average) for name, average in step.averages.items()]
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    for parameter, values in step.optimizer.state.items():
        label = names.get(parameter, "?")
        named += [(f"optimizer.{label}.{key}", each) for key, each in values.items() if isinstance(each, Tensor)]
    return [name for name, tensor in named if not is_finite(tensor)]


def _is_statistic(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def _followed(
    tracer: Tracer, target: str, bad: Sequence[tuple[str, Tensor]], sick: Sequence[str], terms: Iterable[str]
) -> Finding:
    ends = [origin for _, tensor in bad for origin in tracer.origins_of(tensor)]
    roots = _roots(ends)
    names = tuple(name for name, _ in bad[:_MAX_NAMES])
    if not roots:  # the function under the tracer computed it where the tracer cannot see, e.g. in NumPy
        return Finding("outside", target, names, terms=tuple(terms))
    root = roots[0]
    kind: FindingKind = "created" if root.kind == "propagated" else root.kind
    if kind == "state":
        names = tuple(sick[:_MAX_NAMES]) or (root.name,)
    return Finding(kind, target, names, root, _path(ends, root), tuple(roots[1:]), tuple(terms), root.samples)


def _roots(ends: Iterable[Operation]) -> list[Operation]:
    """Where the lineage of ``ends`` begins: the guilty ones first, each in the order of execution."""
    found, waiting, seen = [], list(ends), set()
    while waiting:
        operation = waiting.pop()
        if id(operation) in seen:
            continue
        seen.add(id(operation))
        if operation.kind == "propagated" and operation.parents:
            waiting += operation.parents
        else:
            found.append(operation)
    return sorted(found, key=lambda each: (each.innocent, each.index))


def _path(ends: Sequence[Operation], root: Operation) -> tuple[Operation, ...]:
    """The shortest way from the root to one of the ends, without the root."""
    came_from: dict[int, Operation | None] = {id(end): None for end in ends}
    queue = list(ends)
    for operation in queue:
        if operation is root:
            break
        for parent in operation.parents if operation.kind == "propagated" else ():
            if id(parent) not in came_from:
                came_from[id(parent)] = operation
                queue.append(parent)
    path, at = [], came_from[id(root)]
    while at is not None:
        path.append(at)
        at = came_from[id(at)]
    return tuple(path)


def _with_terms(finding: Finding, step: FailingStep) -> Finding:
    """The finding with the loss terms whose own gradient is not finite."""
    if len(step.terms) < 2:
        return _replaced(finding, step.terms)
    return _replaced(finding, tuple(term for term in step.terms if not step.measure(term=term).finite))


def _replaced(finding: Finding, terms: tuple[str, ...]) -> Finding:
    return Finding(**{**vars(finding), "terms": terms})
