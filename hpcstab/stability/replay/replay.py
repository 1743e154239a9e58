"""A failing step run again under changed conditions, so that its cause can be told and not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hpcstab.errors import CheckpointError
from hpcstab.stability.replay.advice import Advice, Evidence, advise
from hpcstab.stability.replay.causes import Explanation, explain
from hpcstab.stability.replay.failing_step import FailingStep, Measured, leaves, without_samples
from hpcstab.stability.replay.last_update import take_back
from hpcstab.stability.replay.lineage import is_finite
from hpcstab.stability.replay.provenance import Finding, find_creator

OUTLIER_FACTOR = 1e3
"""A sample is an outlier where its largest magnitude is so many times the median over the batch."""


@dataclass(frozen=True)
class Rerun:
    """One condition changed: ``question`` says which. ``measured.error`` where it could not be asked."""

    name: str
    question: str
    measured: Measured


@dataclass(frozen=True)
class Replay:
    """What a failing step is: does it come again, who made it, what changes it, what to do.

    Attributes:
        same: whether the step gave what is on record, to the bit; None where there is no record to compare with.
        outliers: samples that are far from the others of the batch.
        ids: of ``finding.samples``.
    """

    first: Measured
    same: bool | None
    finding: Finding
    explanation: Explanation | None
    reruns: tuple[Rerun, ...]
    outliers: tuple[int, ...]
    ids: tuple[str, ...]
    advice: Advice

    def as_json(self) -> dict[str, Any]:
        """For programs; non-finite figures as text."""
        return {
            "same_as_recorded": self.same,
            "loss": _spelled(self.first.loss),
            "grad_norm": _spelled(self.first.grad_norm),
            **self.finding.as_json(),
            "sample_ids": list(self.ids),
            "cause": vars(self.explanation) if self.explanation else None,
            "reruns": [
                {
                    "name": rerun.name,
                    "question": rerun.question,
                    "finite": rerun.measured.finite,
                    "loss": _spelled(rerun.measured.loss),
                    "grad_norm": _spelled(rerun.measured.grad_norm),
                    "error": rerun.measured.error or None,
                }
                for rerun in self.reruns
            ],
            "outlier_samples": list(self.outliers),
            "advice": vars(self.advice),
        }


def replay(
    step: FailingStep,
    recorded: Mapping[str, float] | None = None,
    *,
    lr_before: float | None = None,
    elsewhere: str = "",
) -> Replay:
    """Run the step again, find who made the first non-finite value, and ask what would have prevented it.

    Args:
        recorded: figures of the step when it failed (``loss``, ``grad_norm``, ``loss_<term>``); None: unknown.
        lr_before: learning rate of the last applied update; None: that of the optimizer.
        elsewhere: how this machine differs from the one that failed; empty where figures must agree to the bit.

    Raises:
        CheckpointError: the step cannot be run at all, for the reason in it.
    """
    first = step.measure()
    if first.error:
        raise CheckpointError(f"the step cannot be run here: {first.error}")
    again = step.measure()
    same = first.equals(_as_measured(recorded)) if recorded else None
    finding = find_creator(step)
    explanation = (
        explain(finding.root) if finding.root and finding.kind in ("created", "placed", "uninitialised") else None
    )
    outliers = _outliers(step)
    reruns = [Rerun("again", "the same step, once more", again)]
    if not first.finite:
        reruns += _reruns(step, finding, outliers, lr_before)
    step.rewind()
    evidence = Evidence(
        repeats=first.equals(again),
        same=same,
        elsewhere=elsewhere,
        dtype=step.dtype,
        loss_scale=step.loss_scale,
        largest_parameter=max(
            (float(each.detach().abs().max()) for each in step.network.parameters() if each.numel()), default=0.0
        ),
        outliers=outliers,
        finite={rerun.name: rerun.measured.finite for rerun in reruns if not rerun.measured.error},
    )
    ids = tuple(step.ids[index] for index in finding.samples if index < len(step.ids))
    return Replay(
        first, same, finding, explanation, tuple(reruns), outliers, ids, advise(finding, explanation, evidence)
    )


def _reruns(step: FailingStep, finding: Finding, outliers: tuple[int, ...], lr_before: float | None) -> list[Rerun]:
    """The questions that this failure raises."""
    reruns = []
    if step.dtype != "fp32" or step.loss_scale != 1.0:
        reruns.append(Rerun("fp32", f"in fp32 instead of {step.dtype}", step.measure(precision="fp32")))
    else:
        reruns.append(Rerun("fp64", "in fp64 instead of fp32", step.measure(precision="fp64")))
    suspects = finding.samples or outliers
    if suspects and len(suspects) < step.num_samples and step.num_parts == 1:
        without = without_samples(step.batch, suspects, step.num_samples)
        reruns.append(Rerun("without", f"without {_samples_text(step, suspects)}", step.measure(without)))
    for name, share, question in (
        ("halved", 0.5, "after half of the last update (half the learning rate)"),
        ("undone", 1.0, "before the last update"),
    ):
        reruns.append(Rerun(name, question, _after(step, lambda: take_back(step.optimizer, share, lr_before))))  # noqa: B023
    return reruns


def _after(step: FailingStep, change: Callable[[], None]) -> Measured:
    step.rewind()
    try:
        change()
    except CheckpointError as error:
        return Measured(error=str(error))
    return step.measure_here()


def _outliers(step: FailingStep) -> tuple[int, ...]:
    """Samples whose largest magnitude is :data:`OUTLIER_FACTOR` times the median over the batch, or not finite."""
    found: set[int] = set()
    for _, tensor in leaves(step.batch):
        if (
            not tensor.is_floating_point()
            or not tensor.ndim
            or tensor.shape[0] != step.num_samples
            or not tensor.numel()
        ):
            continue
        if not is_finite(tensor):
            continue  # those are the finding's
        largest = tensor.detach().double().abs().reshape(step.num_samples, -1).amax(dim=1)
        typical = float(largest.median())
        if typical > 0:
            found.update((largest > OUTLIER_FACTOR * typical).nonzero().flatten().tolist())
    return tuple(sorted(found)) if len(found) < step.num_samples else ()


def _samples_text(step: FailingStep, samples: tuple[int, ...]) -> str:
    names = [step.ids[index] if step.ids else str(index) for index in samples]
    return f"sample{'s' if len(names) > 1 else ''} {', '.join(names[:3])}" + (", ..." if len(names) > 3 else "")


def _as_measured(recorded: Mapping[str, float]) -> Measured:
    others = {name: value for name, value in recorded.items() if name.startswith("loss_")}
    return Measured(recorded.get("loss", math.nan), recorded.get("grad_norm", math.nan), figures=others)


def _spelled(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
