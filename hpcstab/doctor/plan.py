"""What is to be changed in a sick checkpoint: a ladder for each part, its first rung that holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from hpcstab.doctor.contents import TensorFile
from hpcstab.doctor.diagnose import Examined
from hpcstab.doctor.findings import Change, Finding, How
from hpcstab.doctor.parts import Located
from hpcstab.doctor.rewrite import Edits
from hpcstab.doctor.sources import Sibling
from hpcstab.errors import CheckpointError

Reestimate = Callable[[Path, Mapping[str, Tensor], Sequence[str]], Mapping[str, tuple[Tensor, Tensor]]]
"""(checkpoint folder, network state with the sick statistics reset, layers) -> layer: (mean, variance).

Layers that could not be estimated are left out. Raises CheckpointError where the model cannot be built here.
"""

FRESH_LOSS_SCALE = 65536.0
"""What torch.amp.GradScaler begins with; it finds the right one within a few steps."""
_WHOLE = ("damaged", "zero_variance", "absurd", "at_the_edge")
"""Findings that leave no channel of a statistic to be trusted."""
_NETWORK = "network."
_KEPT = "batchnorm.kept."
_MEANINGS: dict[How, str] = {
    "restored": "as they are in {source}: the function of these weights with values of that checkpoint",
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


def make_plan(
    ours: Examined,
    file: TensorFile,
    sibling: Sibling | None,
    own_run: Sibling | None,
    reestimate: Reestimate | None,
) -> Plan:
    """Decide for each sick tensor where sound values come from.

    Args:
        sibling: named by the user; everything may come from it.
        own_run: a healthy checkpoint of the same run; nothing that is trained comes from it unasked.
    """
    return _Planner(ours, file, sibling, own_run, reestimate).plan


class _Planner:
    def __init__(
        self,
        ours: Examined,
        file: TensorFile,
        sibling: Sibling | None,
        own_run: Sibling | None,
        reestimate: Reestimate | None,
    ) -> None:
        self.plan = Plan()
        self._ours, self._file = ours, file
        self._tensors = ours.layout.tensors
        self._sibling, self._own_run, self._reestimate = sibling, own_run, reestimate
        self._new: dict[str, Tensor] = {}
        self._codes: dict[str, set[str]] = {}
        for finding in ours.diagnosis.sick:
            self._codes.setdefault(finding.name, set()).add(finding.code)
        self._sick = [self._tensors[name] for name in self._codes if name in self._tensors]
        self._weights()
        self._optimizer()
        self._scaler()
        self._statistics()
        self._averages()
        self._numbers()
        self._the_rest()

    # -- parts, in an order in which a later one may lean on an earlier one

    def _weights(self) -> None:
        for located in self._of("weights"):
            if not self._restore([located], self._sibling):
                self._give_up(located.name)

    def _optimizer(self) -> None:
        owners = dict.fromkeys(located.owner or located.name for located in self._of("optimizer"))
        for owner in owners:
            members = [each for each in self._tensors.values() if owner in (each.owner, each.name)]
            if self._restore(members, self._sibling) or self._restore(members, self._own_run):
                continue
            entries = self._ours.layout.owned.get(owner)
            if entries is None or not self.plan.edits.drop(self._ours.contents, entries):
                self._give_up(*(member.name for member in members))
                continue
            num_values = sum(member.tensor.num_values for member in members)
            self._note(owner, members[0], "dropped", num_values)

    def _scaler(self) -> None:
        for located in self._of("scaler"):
            if not (self._restore([located], self._sibling) or self._restore([located], self._own_run)):
                self._set(located, torch.full(located.tensor.shape, FRESH_LOSS_SCALE))
                self._note(located.name, located, "reset", 1, "the scale that a fresh scaler begins with")

    def _statistics(self) -> None:
        layers = dict.fromkeys(located.layer for located in self._of("batchnorm") if located.role != "count")
        for located in self._of("batchnorm"):
            if located.role == "count":
                self._count(located)
        estimates = self._estimates([layer for layer in layers if not self._has(layer, self._sibling)])
        for layer in sorted(layers, key=lambda layer: layer.startswith(_KEPT)):
            self._layer(layer, estimates)

    def _averages(self) -> None:
        for layer in dict.fromkeys(located.layer for located in self._of("ema") if located.layer):
            self._layer(layer, {})
        by_own_name: dict[str, list[Located]] = {}
        for located in self._tensors.values():
            if located.part in ("weights", "batchnorm"):
                by_own_name.setdefault(_bare(located.own_name), []).append(located)
        for located in self._of("ema"):
            if located.layer or self._restore([located], self._sibling) or self._restore([located], self._own_run):
                continue
            behind = by_own_name.get(_bare(located.own_name), [])
            value = self._current(behind[0]) if len(behind) == 1 else None
            if value is None or value.shape != located.tensor.shape:
                self._give_up(located.name)
                continue
            self._set(located, value)
            self._note(located.name, located, "averaged anew", located.tensor.num_values)

    def _numbers(self) -> None:
        for name, (part, number) in self._ours.layout.numbers.items():
            if name not in self._codes:
                continue
            value = next((v for s in (self._sibling, self._own_run) if s and (v := s.number(name)) is not None), None)
            if value is None and part == "scaler":
                value = FRESH_LOSS_SCALE
            if value is None or not self.plan.edits.set_float(self._ours.contents, number, value):
                self._give_up(name)
                continue
            self.plan.changes.append(Change(name, part, "reset", 1, f"is {value:g} now, it was {number}"))

    def _the_rest(self) -> None:
        """Findings about the file go away with a copy, where what they are about is known."""
        in_tensors = any("damaged" in codes for name, codes in self._codes.items() if name in self._tensors)
        for finding in self._ours.diagnosis.sick:
            handled = finding.name in self._tensors or finding.name in self._ours.layout.numbers
            if not handled and not (finding.code == "checksum" and in_tensors):
                self.plan.left.append(finding)

    # -- rungs

    def _layer(self, layer: str, estimates: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        mean, variance = self._pair(layer)
        bad = self._bad_channels(mean, variance)
        name = layer or "(the file itself)"
        num_values = int(bad.sum()) * 2
        for source in (self._sibling, None, self._own_run):
            how: How = "restored"
            pair = (source.value(mean), source.value(variance)) if source is not None else (None, None)
            words = source.name if source is not None else ""
            if source is None and layer in estimates:
                how, pair = "reestimated", estimates[layer]
            elif source is None and layer.startswith(_KEPT):
                pair, words = self._of_network(layer), "the network of this checkpoint"
            if pair[0] is not None and pair[1] is not None:
                self._mend(mean, pair[0], bad)
                self._mend(variance, pair[1], bad)
                self._note(name, mean, how, num_values, source=words)
                return
        self._mend(mean, torch.zeros(()), bad)
        self._mend(variance, torch.ones(()), bad)
        self._note(name, mean, "reset", num_values)

    def _estimates(self, layers: list[str]) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Statistics of our own network estimated anew, by layer as the file names it."""
        asked = [layer for layer in layers if layer.startswith(_NETWORK)]
        if not asked or self._reestimate is None or self._ours.contents.manifest is None:
            return {}
        if any(finding.part == "weights" for finding in self.plan.left):
            return {}  # of sick weights there is nothing to estimate
        state: dict[str, Tensor] = {}
        for name, located in self._tensors.items():
            if name.startswith(_NETWORK):
                state[name.removeprefix(_NETWORK)] = self._new.get(name, self._file.read(located.tensor))
        for layer in asked:
            mean, variance = self._pair(layer)
            bad = self._bad_channels(mean, variance)
            for located, fresh in ((mean, 0.0), (variance, 1.0)):
                state[located.name.removeprefix(_NETWORK)].masked_fill_(bad, fresh)
        try:
            found = self._reestimate(
                self._ours.diagnosis.path, state, [layer.removeprefix(_NETWORK) for layer in asked]
            )
        except CheckpointError as error:
            self.plan.advice.append(f"statistics could not be estimated anew: {error}")
            return {}
        return {f"{_NETWORK}{layer}": pair for layer, pair in found.items()}

    def _count(self, located: Located) -> None:
        if self._restore([located], self._sibling):
            return
        sound = [each for each in self._tensors.values() if each.role == "count" and each.name not in self._codes]
        value = self._file.read(sound[0].tensor) if sound else torch.zeros((), dtype=torch.int64)
        self._set(located, value)
        meaning = "only a momentum of None reads it; " + (f"as in {sound[0].name}" if sound else "counts from 0")
        self._note(located.name, located, "reset", 1, meaning)

    def _restore(self, located: Sequence[Located], sibling: Sibling | None) -> bool:
        """Take all of ``located`` from the sibling, or none."""
        if sibling is None:
            return False
        values = [sibling.value(each) for each in located]
        if any(value is None for value in values):
            return False
        for each, value in zip(located, values, strict=True):
            assert value is not None
            self._set(each, value)
            self._note(each.name, each, "restored", each.tensor.num_values, source=sibling.name)
        return True

    # -- what they stand on

    def _of(self, part: str) -> list[Located]:
        return [located for located in self._sick if located.part == part]

    def _pair(self, layer: str) -> tuple[Located, Located]:
        found = {each.role: each for each in self._tensors.values() if each.layer == layer and each.role != "count"}
        return found["mean"], found["variance"]

    def _of_network(self, layer: str) -> tuple[Tensor | None, Tensor | None]:
        inside = layer.removeprefix(_KEPT)
        names = (f"{_NETWORK}{inside}.running_mean", f"{_NETWORK}{inside}.running_var")
        mean, variance = (self._current(self._tensors[name]) if name in self._tensors else None for name in names)
        return mean, variance

    def _has(self, layer: str, sibling: Sibling | None) -> bool:
        return sibling is not None and all(sibling.value(each) is not None for each in self._pair(layer))

    def _bad_channels(self, mean: Located, variance: Located) -> Tensor:
        """Channels are independent of each other: those that are sound keep what was trained."""
        if any(code in _WHOLE for each in (mean, variance) for code in self._codes.get(each.name, ())):
            return torch.ones(mean.tensor.shape, dtype=torch.bool)
        found, spread = self._file.read(mean.tensor), self._file.read(variance.tensor)
        return ~(found.isfinite() & spread.isfinite() & (spread >= 0))

    def _current(self, located: Located) -> Tensor | None:
        """What the repaired file will hold; None where that is not sound."""
        if located.name in self._new:
            return self._new[located.name]
        return None if located.name in self._codes else self._file.read(located.tensor)

    def _mend(self, located: Located, value: Tensor, bad: Tensor) -> None:
        kept = self._file.read(located.tensor)
        self._set(located, torch.where(bad, value.to(kept.dtype), kept))

    def _set(self, located: Located, value: Tensor) -> None:
        self._new[located.name] = value
        self.plan.edits.set_values(self._ours.contents, self._file, located.tensor, value)

    def _note(
        self, name: str, located: Located, how: How, num_values: int, meaning: str = "", source: str = ""
    ) -> None:
        text = meaning or _MEANINGS[how].format(source=source)
        self.plan.changes.append(Change(name, located.part, how, num_values, text))

    def _give_up(self, *names: str) -> None:
        self.plan.left += [finding for finding in self._ours.diagnosis.sick if finding.name in names]


def _bare(own_name: str) -> str:
    """A name without what wrappers and averages put before it or take out of it."""
    segments = own_name.split(".")
    return "".join(_without_wrappers(segments)).lower()


def _without_wrappers(segments: Iterable[str]) -> list[str]:
    wrappers = ("module", "model", "_orig_mod", "ema", "ema_model", "model_ema", "averaged_model", "teacher", "student")
    found = list(segments)
    while len(found) > 1 and found[0] in wrappers:
        found = found[1:]
    return found
