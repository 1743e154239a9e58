"""The creator of a non-finite value is named: by its operation, its module, its line, its direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.stability.replay.causes import explain
from hpcstab.stability.replay.provenance import Finding, find_creator
from hpcstab.stability.replay.replay import replay
from tests.stability import corpus
from tests.stability.corpus import BAD_SAMPLE, CASES, INF, SPECIAL, Case, all_masked, perceptron, put, step_of, vectors

KNOWN_MISSES: dict[str, str] = {}
"""Cases that are named wrongly, and why; each must go on to be wrong, or leave this list."""
pytestmark = pytest.mark.filterwarnings("ignore:.*degrees of freedom:UserWarning")


def named(finding: Finding) -> tuple[str, str, str, str]:
    """(kind, operation family or name of the tensor, module, direction)."""
    root = finding.root
    if root is None:
        return finding.kind, "", "", "forward"
    of_tensor = finding.kind in ("input", "state", "norm_overflow")
    return finding.kind, root.name if of_tensor else root.source_family, root.module, root.direction


def is_right(case: Case, finding: Finding) -> bool:
    kind, family, module, direction = named(finding)
    right = (kind, module, direction) == (case.kind, case.module, case.direction)
    return right and (not case.family or family in case.family.split("|"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_creator_is_named(case: Case) -> None:
    finding = find_creator(step_of(case))
    wanted = (case.kind, case.family, case.module, case.direction)
    if case.name in KNOWN_MISSES:
        assert not is_right(case, finding), "it is right now: take it out of KNOWN_MISSES"
        return
    assert is_right(case, finding), f"wanted {wanted}, got {named(finding)}"
    if finding.kind == "created":
        assert finding.root is not None
        assert finding.root.place is not None
        assert Path(finding.root.place.file).name == "corpus.py"
        assert all(facts.num_nonfinite == 0 for facts in finding.root.inputs) or finding.root.parents


def test_at_least_95_percent_of_the_corpus_are_exact() -> None:
    """Against the published 21 of 40 (DeepLocalize) and 10 of 20 (TrainCheck)."""
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert KNOWN_MISSES.keys() <= {case.name for case in CASES}
    assert 1 - len(KNOWN_MISSES) / len(CASES) >= 0.95


@pytest.mark.parametrize("case", [case for case in SPECIAL if case.verdict != "*"], ids=lambda case: case.name)
def test_the_advice_fits_the_cause(case: Case) -> None:
    replayed = replay(step_of(case))
    assert replayed.advice.verdict == case.verdict, replayed.advice.line
    if case.samples is not None:
        assert case.samples in (replayed.finding.samples, replayed.outliers)


def case_of(loss: Callable[[Tensor, Tensor], Tensor]) -> Case:
    return Case(
        "own", lambda: (perceptron(), vectors(), lambda network, batch: loss(network(batch[0]), batch[1])), "", ""
    )


def found(loss: Callable[[Tensor, Tensor], Tensor]) -> Finding:
    return find_creator(step_of(case_of(loss)))


def families(finding: Finding) -> list[str]:
    return [operation.family for operation in finding.path]


def test_propagators_follow_the_creator_and_are_not_it() -> None:
    finding = found(lambda out, y: (put(out, 200.0).exp() * 2 - y).mean())
    assert named(finding)[1] == "exp"
    assert families(finding) == ["mul", "sub", "mean"]
    assert finding.target == "loss"
    assert finding.samples == (BAD_SAMPLE,)


def test_a_mask_that_softmax_absorbs_is_no_culprit() -> None:
    """The mask comes first; the logarithm behind it is what is wrong."""
    causal = corpus.Attention(corpus.causal)
    healthy = Case("mask", lambda: (causal, vectors(), corpus.squared), "", "")
    assert find_creator(step_of(healthy)).kind == "none"

    def with_log(network: nn.Module, batch: Any) -> Tensor:
        return put(corpus.positive(network(batch[0])), 0.0).log().mean()

    finding = find_creator(step_of(Case("mask", lambda: (causal, vectors(), with_log), "", "")))
    assert named(finding) == ("created", "log", "", "forward")
    assert not finding.others


def test_a_weight_of_minus_infinity_is_sick_and_no_mask() -> None:
    """What an infinite momentum leaves; buffers may hold such masks, but nobody trains one."""

    def poison(step: Any) -> None:
        dict(step.network.named_parameters())["0.weight"].data[0, 0] = -math.inf
        step.__post_init__()

    finding = find_creator(
        step_of(Case("weight", lambda: (perceptron(), vectors(), corpus.squared), "", "", prepare=poison))
    )
    assert (finding.kind, finding.names) == ("state", ("0.weight",))


def test_a_running_mean_of_minus_infinity_is_sick_and_no_mask() -> None:
    """A training step does not even read it: only the state tells."""

    def poison(step: Any) -> None:
        step.network.get_buffer("1.running_mean")[0] = -math.inf
        step.__post_init__()

    normalised = Case("mean", corpus.layers(nn.BatchNorm1d(5)), "", "", prepare=poison)
    finding = find_creator(step_of(normalised))
    assert (finding.kind, finding.names) == ("state", ("1.running_mean",))


def test_an_infinity_that_reaches_the_loss_as_it_was_asked_for() -> None:
    finding = found(lambda out, y: all_masked(out)[BAD_SAMPLE, 0])
    assert named(finding)[:2] == ("placed", "masked_fill")
    assert finding.root is not None
    assert explain(finding.root).cause == "infinity"


def test_values_that_were_overwritten_are_forgotten() -> None:
    """The log of zero is written over before anybody reads it; the division is what remains."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        values = put(corpus.positive(out), 0.0).log().detach().clone()
        values.zero_()
        return (out * (values / values)).sum()

    assert named(found(loss))[1] == "div"


def test_two_halves_of_one_memory_have_their_own_creators() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        memory = torch.zeros(4)
        memory[0] = torch.zeros(()).log()
        memory[3] = torch.full((), 100.0).exp()
        return out.sum() * memory[2:].sum()

    assert named(found(loss))[1] == "exp"


def test_a_backward_creator_has_the_line_of_its_forward() -> None:
    def loss(out: Tensor, y: Tensor) -> Tensor:
        return put(corpus.positive(out), 0.0).sqrt().sum()  # this line

    finding = found(loss)
    assert finding.root is not None
    assert finding.root.place is not None
    assert finding.root.place.text.endswith("# this line")
    assert (finding.root.node, finding.root.source) == ("SqrtBackward0", "aten.sqrt.default")
    assert finding.target == "gradient"
    assert explain(finding.root).cause == "domain"


def test_ranges_of_the_inputs_are_those_before_an_in_place_operation() -> None:
    finding = found(lambda out, y: put(corpus.positive(out), -2.0).clone().log_().mean())
    assert finding.root is not None
    (facts,) = finding.root.inputs
    assert facts.minimum == -2.0
    assert facts.maximum is not None
    assert 0.2 <= facts.maximum <= 0.8


def test_buffers_alone_can_be_what_went_bad() -> None:
    """A variance overflows in a layer whose output the loss does not read."""
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def loss(network: nn.Module, batch: Any) -> Tensor:
        network[1](batch[0][:, :3] * 1e30)
        return network[0](batch[0]).square().mean()

    finding = find_creator(step_of(Case("buffers", lambda: (network, vectors(), loss), "", "")))
    assert (finding.target, finding.names) == ("buffer", ("1.running_var",))
    assert named(finding)[1:3] == ("native_batch_norm", "1")


def test_what_numpy_made_comes_from_outside() -> None:
    finding = found(lambda out, y: out.sum() * torch.tensor(math.nan))
    assert finding.kind == "outside"
    assert finding.root is not None
    assert finding.root.place is not None
    assert "math.nan" in finding.root.place.text


def test_activation_checkpointing_recomputes_forwards_in_the_backward() -> None:
    from torch.utils.checkpoint import checkpoint

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return checkpoint(network, batch[0], use_reentrant=False).sum()

    case = Case("checkpoint", lambda: (perceptron(corpus.masked_exp), vectors(), loss), "", "")
    finding = find_creator(step_of(case))
    assert named(finding) == ("created", "exp", "2", "forward")


def test_nothing_is_left_behind_in_torch() -> None:
    from torch.nn.modules import module

    find_creator(step_of(SPECIAL[0]))
    assert not module._global_forward_hooks
    assert not module._global_forward_pre_hooks


def test_an_infinite_constant_minus_itself_is_the_subtractions_fault() -> None:
    finding = found(lambda out, y: (out + INF - INF).sum())
    assert named(finding)[1] == "sub"


@pytest.mark.parametrize(
    ("loss", "cause"),
    [
        (lambda out, y: (out / 0.0).mean(), "domain"),
        (lambda out, y: torch.special.erfinv(put(out.tanh() / 2, 1.0)).mean(), "domain"),
        (lambda out, y: put(out, 150.0).exp().mean(), "overflow"),
        (lambda out, y: (corpus.positive(out) * 3e38).sum(), "overflow"),
        (lambda out, y: put(out, 1e5).half().float().mean(), "cast"),
        (lambda out, y: all_masked(out).softmax(1).sum(), "infinity"),
    ],
)
def test_the_cause_is_told_from_the_ranges(loss: Callable[[Tensor, Tensor], Tensor], cause: str) -> None:
    root = found(loss).root
    assert root is not None
    assert explain(root).cause == cause


@pytest.mark.parametrize(("name", "samples"), [("NaN input", (BAD_SAMPLE,)), ("log of zero, in a module", ())])
def test_in_micro_batches_only_bad_inputs_name_their_samples(name: str, samples: tuple[int, ...]) -> None:
    step = step_of(next(case for case in CASES if case.name == name))
    assert find_creator(step).samples == (BAD_SAMPLE,)
    step.num_parts = 2
    assert find_creator(step).samples == samples
