"""A sick checkpoint under repair: what is known of it, what it will hold, and what was decided so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hpcstab.doctor.contents import TensorFile
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.findings import Change, Finding, How, Part
from hpcstab.doctor.parts import Located
from hpcstab.doctor.rewrite import Edits
from hpcstab.doctor.sources import Sibling

_MEANINGS: dict[How, str] = {
    "restored": "as in {source}: the function of these weights with values of that checkpoint",
    "reestimated": "mean and variance over clean training batches, which is what the moving average estimates:"
    " the trained function but for the noise of the estimate",
    "averaged anew": "begins anew from the weights: evaluated as the raw weights until it has averaged again",
    "reset": "ANOTHER FUNCTION than the trained one: train some 1/momentum batches (100 with 0.1) or estimate the"
    " statistics anew before you trust an evaluation",
    "dropped": "starts anew as at step 0; the weights stay. Its first updates are those of a fresh optimizer, so expect"
    " a bump of the loss for some 1/(1 - beta2) updates",
}


@dataclass
class Plan:
    """Edits with what they mean; ``left``: findings that nothing can be done about."""

    edits: Edits = field(default_factory=Edits)
    changes: list[Change] = field(default_factory=list)
    left: list[Finding] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)


class Patient:
    """One checkpoint and the healthy ones that values may come from.

    Args:
        sibling: named by the user; everything may come from it.
        own_run: a healthy checkpoint of the same run; nothing that is trained comes from it unasked.
    """

    def __init__(
        self, ours: Examined, file: TensorFile, sibling: Sibling | None = None, own_run: Sibling | None = None
    ) -> None:
        self.plan = Plan()
        self.ours, self.file = ours, file
        self.sibling, self.own_run = sibling, own_run
        self.tensors = ours.layout.tensors
        self.codes: dict[str, set[str]] = {}
        for finding in ours.diagnosis.sick:
            self.codes.setdefault(finding.name, set()).add(finding.code)
        self._new: dict[str, Tensor] = {}
        self._weights_by_name: dict[str, list[Located]] = {}
        for located in self.tensors.values():
            if located.part in ("weights", "batchnorm"):
                self._weights_by_name.setdefault(_bare(located.own_name), []).append(located)

    def sick(self, part: Part) -> list[Located]:
        """Its tensors of a part that something is wrong with."""
        return [self.tensors[name] for name in self.codes if name in self.tensors and self.tensors[name].part == part]

    def current(self, located: Located) -> Tensor | None:
        """What the repaired file will hold; None where that is not sound."""
        if located.name in self._new:
            return self._new[located.name]
        return None if located.name in self.codes else self.file.read(located.tensor)

    def behind(self, average: Located) -> Tensor | None:
        """What a moving average is the average of, where that is known and sound."""
        found = self._weights_by_name.get(_bare(average.own_name), [])
        value = self.current(found[0]) if len(found) == 1 else None
        return value if value is not None and value.shape == average.tensor.shape else None

    def set(self, located: Located, value: Tensor) -> None:
        """The repaired file will hold ``value``."""
        self._new[located.name] = value
        self.plan.edits.set_values(self.ours.contents, self.file, located.tensor, value)

    def restore(self, located: Sequence[Located], *siblings: Sibling | None) -> bool:
        """Take all of ``located`` from the first sibling that has them all; False where none has."""
        for sibling in siblings:
            values = [sibling.value(each) for each in located] if sibling is not None else [None]
            if sibling is None or any(value is None for value in values):
                continue
            for each, value in zip(located, values, strict=True):
                assert value is not None
                self.set(each, value)
                self.note(each, "restored", each.tensor.num_values, source=sibling.name)
            return True
        return False

    def note(
        self, located: Located, how: How, num_values: int, *, name: str = "", meaning: str = "", source: str = ""
    ) -> None:
        """Write a change down; ``name``: of what was changed, where that is more than the tensor."""
        text = meaning or _MEANINGS[how].format(source=source)
        self.plan.changes.append(Change(name or located.name, located.part, how, num_values, text))

    def give_up(self, *names: str) -> None:
        """Nothing can be done about what was found in these tensors."""
        self.plan.left += [finding for finding in self.ours.diagnosis.sick if finding.name in names]


def _bare(own_name: str) -> str:
    """A name without what wrappers and averages put before it or take out of it."""
    wrappers = ("module", "model", "_orig_mod", "ema", "ema_model", "model_ema", "averaged_model", "teacher", "student")
    segments = own_name.split(".")
    while len(segments) > 1 and segments[0] in wrappers:
        segments = segments[1:]
    return "".join(segments)
