"""One line of advice from a finding and controlled re-runs, by rules that can be read.

In this order, the first that applies:

0. The step was finite when it was refused (a spike): **data** where a sample is far from the others, else **learning
   rate**.
1. The step is finite now, or two runs of it differ: **not reproducible** (hardware, or an operation without order).
2. The batch held the non-finite value: **data**.
3. Parameters, buffers or optimizer state held it before the step: **state**; an earlier step is the one to look at.
4. A sample far from the others, and the step is finite without it: **data**.
5. The creator was given what its function has no finite value for, or an infinity that the code asked for: **layer**.
6. An overflow reaches the loss through a product with 0: **layer**; a term of weight 0 has to be left out.
7. fp32 instead of a 16-bit format is finite, or a loss-scaled gradient overflowed: **precision**.
8. An overflow that is gone after half of the last update, or before it, or parameters above 1e4: **learning rate**.
9. Anything else that a creator overflowed: **layer**; its input has to be bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hpcstab.stability.replay.causes import Explanation
from hpcstab.stability.replay.operations import Operation
from hpcstab.stability.replay.provenance import Finding

Verdict = Literal["data", "precision", "layer", "learning rate", "state", "not reproducible"]
HUGE_PARAMETER = 1e4


@dataclass(frozen=True)
class Evidence:
    """What the re-runs showed; ``finite`` maps the name of a re-run that ran to whether it was."""

    repeats: bool
    same: bool | None
    elsewhere: str
    dtype: str
    loss_scale: float
    largest_parameter: float
    outliers: tuple[int, ...]
    finite: Mapping[str, bool]


@dataclass(frozen=True)
class Advice:
    """``line`` is one sentence: what to change."""

    verdict: Verdict
    line: str


def advise(finding: Finding, explanation: Explanation | None, evidence: Evidence) -> Advice:
    """The first rule that applies."""
    if finding.kind == "none" and evidence.repeats and evidence.same:
        return _finite_as_recorded(evidence)
    if finding.kind == "none" or not evidence.repeats:
        return _not_reproducible(finding, evidence)
    if finding.kind == "input":
        where = finding.root.name if finding.root else "the batch"
        return Advice(
            "data", f"{where} holds a value that is not finite: check the samples that are named, and leave them out"
        )
    if finding.kind == "state":
        return Advice(
            "state",
            f"{finding.names[0]} was not finite before this step: replay the first capsule of the run, and go on from"
            " its last healthy checkpoint",
        )
    if evidence.outliers and evidence.finite.get("without"):
        return Advice(
            "data", "without the sample that is far from the others the step is finite: check it, or normalise"
        )
    if explanation is not None and explanation.cause in ("domain", "infinity", "uninitialised"):
        return Advice("layer", f"{_at(finding)}: {explanation.remedy}")
    products = [each for each in finding.path if each.is_times_zero]
    if products:
        return Advice(
            "layer",
            f"{_at(finding)} overflows, and a product with 0{_line(products[-1])} makes NaN of it: leave a term of"
            " weight 0 out of the sum, and bound that input before its weight rises",
        )
    return _overflow(finding, explanation, evidence)


def _overflow(finding: Finding, explanation: Explanation | None, evidence: Evidence) -> Advice:
    if evidence.finite.get("fp32") and finding.target == "gradient" and evidence.loss_scale > 1:
        return Advice(
            "precision",
            f"gradients overflow {evidence.dtype} under the loss scale {evidence.loss_scale:g}: let it back off,"
            " or start it lower",
        )
    if evidence.finite.get("fp32"):
        return Advice(
            "precision", f"fp32 is finite where {evidence.dtype} is not: {_at(finding)} needs fp32, or smaller values"
        )
    if evidence.finite.get("halved") or evidence.finite.get("undone"):
        share = "half of the last update" if evidence.finite.get("halved") else "the state before the last update"
        return Advice("learning rate", f"with {share} the step is finite: lower the learning rate, or warm it up")
    if evidence.largest_parameter > HUGE_PARAMETER:
        return Advice(
            "learning rate",
            f"parameters have grown to {evidence.largest_parameter:.3g}: lower the learning rate, or clip gradients",
        )
    if finding.kind == "norm_overflow":
        return Advice("layer", f"the gradient of {finding.names[0]} is too large to be squared: scale the loss down")
    remedy = explanation.remedy if explanation else "compute it from tensors, where it can be followed"
    return Advice("layer", f"{_at(finding)}: {remedy}")


def _finite_as_recorded(evidence: Evidence) -> Advice:
    """A spike: refused for its size."""
    if evidence.outliers:
        return Advice("data", "the step is finite, as it was: a sample is far from the others, check it, or normalise")
    return Advice(
        "learning rate", "the step is finite, as it was when it was refused: lower the learning rate, or clip"
    )


def _not_reproducible(finding: Finding, evidence: Evidence) -> Advice:
    if not evidence.repeats:
        return Advice(
            "not reproducible", "two runs of the same step differ: hardware, or an operation without a fixed order"
        )
    if finding.kind == "none" and evidence.elsewhere:
        return Advice(
            "not reproducible", f"the step is finite here, and {evidence.elsewhere}: replay it where it failed"
        )
    return Advice("not reproducible", "the step is finite now: suspect the hardware of the node that it failed on")


def _at(finding: Finding) -> str:
    if finding.root is None:
        return "the loss"
    root = finding.root
    where = f" in {root.module}" if root.module else ""
    return f"{root.source_family}{where}{_line(root)}"


def _line(operation: Operation) -> str:
    place = operation.place
    return f" ({place.file.rpartition('/')[2]}:{place.line})" if place else ""
