"""The three lines in loops that are not ours: what a bad batch leaves behind is nothing."""

from __future__ import annotations

import logging
import math
import random
import runpy
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcstab.errors import CheckpointError, ConfigError, NumericsError
from hpcstab.stability import harden
from hpcstab.stability.random_state import put_random_state
from hpcstab.stability.replay.capsule import read_capsule
from tests.conftest import REPOSITORY
from tests.stability.loops import LOOPS, bare, hardened
from tests.training.test_gate import same


@pytest.mark.parametrize("spoilt", [(), (0,), (4,), (3, 4), (1, 7), (8,), (0, 1, 2, 3, 4, 5, 6, 7, 8)])
@pytest.mark.parametrize("name", LOOPS)
def test_the_result_is_that_of_a_loop_without_the_bad_batches(name: str, spoilt: tuple[int, ...]) -> None:
    """Bitwise: parameters, BatchNorm statistics, optimizer state; dropout draws as if the batch had never come."""
    trained = hardened(LOOPS[name], spoilt)
    expected = bare(LOOPS[name], spoilt)
    if len(spoilt) < 9:
        assert same(trained.state(), expected.state())
    assert same([model.state_dict() for model in trained.models], [model.state_dict() for model in expected.models])
    assert (trained.hardened.updates, trained.hardened.num_refused) == (9 - len(spoilt), len(spoilt))
    refused = [event["step"] for event in trained.hardened.events if event["kind"] == "step_refused"]
    assert refused == list(spoilt)


@pytest.mark.parametrize("name", ["resnet with BatchNorm", "transformer", "lstm"])
def test_all_batches_of_an_accumulated_step_are_left_out(name: str) -> None:
    """One bad batch spoils the sum of three, whichever of them it is; the last, short sum stays open."""
    for spoilt in (3, 4, 5):
        trained = hardened(LOOPS[name], (spoilt,), accumulate=3)
        assert same(trained.state(), bare(LOOPS[name], (3, 4, 5), accumulate=3).state())


def test_batches_that_were_not_stepped_yet_come_again_with_those_before_them() -> None:
    """Nine batches in sums of four: the ninth waits when the second sum is found to be bad."""
    trained = hardened(LOOPS["resnet with BatchNorm"], (6,), accumulate=4)
    assert same(trained.state(), bare(LOOPS["resnet with BatchNorm"], (4, 5, 6, 7), accumulate=4).state())


def small(batchnorm: bool = True, **options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), *([nn.BatchNorm1d(4)] if batchnorm else []), nn.Dropout(0.2), nn.Linear(4, 1)]
    network = nn.Sequential(*layers)
    return network, torch.optim.SGD(network.parameters(), **{"lr": 0.1, "momentum": 0.9, "fused": True, **options})


def data(*spoilt: int, count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(6, 3, generator=generator) for _ in range(count)]
    return [batch * math.nan if index in spoilt else batch for index, batch in enumerate(batches)]


def loss_of(network: nn.Module, batch: Tensor) -> Tensor:
    return (network(batch) - batch.sum(1, keepdim=True)).square().mean()


def run(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, **options: Any) -> Any:
    """The three lines."""
    hardened = harden(network, optimizer, **options)
    for batch in hardened.batches(batches):
        loss = loss_of(network, batch)
        loss.backward()
        hardened.step(loss)
        optimizer.zero_grad()
    return hardened


def plain_loop(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Any, clip: float | None = None) -> None:
    for batch in batches:
        loss_of(network, batch).backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("is_fused", [True, False])
def test_clipping_is_that_of_torch(is_fused: bool) -> None:
    """To rounding, since it happens inside the optimizer's kernel."""
    ours, theirs = small(False, fused=is_fused), small(False, fused=is_fused)
    hardened = run(*ours, data(3), max_grad_norm=0.1)
    assert hardened.last.clip_scale < 0.9
    torch.manual_seed(0)
    small()
    plain_loop(*theirs, [batch for batch in data(3) if bool(batch.isfinite().all())], clip=0.1)
    for mine, other in zip(ours[0].parameters(), theirs[0].parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-6)


def test_a_fault_of_the_machine_costs_nothing() -> None:
    """The batch was sound: it is trained on, as in a loop where nothing happened, with all three generators."""

    def train(fails: bool) -> tuple[Any, Any, list[Any]]:
        random.seed(3)
        np.random.seed(3)
        network, optimizer = small()
        drawn: list[Any] = []
        seen: list[Tensor] = []
        hardened = harden(network, optimizer)
        for batch in hardened.batches(data()):
            noise = random.random() + np.random.rand()
            loss = loss_of(network, batch + 0.1 * noise)
            if fails and len(seen) == 4:
                loss = loss * math.nan
            seen.append(batch)
            loss.backward()
            hardened.step(loss)
            optimizer.zero_grad()
            drawn.append(noise)
        return hardened, same_state(network, optimizer), drawn

    hardened, state, drawn = train(fails=True)
    healthy, expected, healthy_drawn = train(fails=False)
    assert same(state, expected)
    assert [event["kind"] for event in hardened.events] == ["not_reproduced"]
    assert (hardened.updates, hardened.num_refused, healthy.events) == (8, 0, [])
    assert drawn == healthy_drawn[:7] + healthy_drawn[4:]  # three bodies ran a second time, with the same draws


def test_a_second_run_begins_without_what_has_accumulated_since() -> None:
    """Nine batches in sums of four; the second sum fails once, and is run again after the ninth has left gradients."""
    network, optimizer = small()
    hardened = harden(network, optimizer)
    num_failures = 0
    for index, batch in hardened.batches(enumerate(data(count=9))):
        loss = loss_of(network, batch)
        if index == 6 and not num_failures:
            loss, num_failures = loss * math.nan, 1
        loss.backward()
        if index % 4 == 3:
            hardened.step(loss)
            optimizer.zero_grad()
    other_network, other = small()
    for index, batch in enumerate(data(count=9)):
        loss_of(other_network, batch).backward()  # type: ignore[no-untyped-call]
        if index % 4 == 3:
            other.step()
            other.zero_grad()
    assert [event["kind"] for event in hardened.events] == ["not_reproduced"]
    assert same(same_state(network, optimizer), same_state(other_network, other))
    for mine, its in zip(network.parameters(), other_network.parameters(), strict=True):
        assert torch.equal(mine.grad, its.grad)  # of the ninth


def same_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    return [network.state_dict(), optimizer.state_dict()]


@pytest.mark.parametrize(
    "make",
    [
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.2, total_steps=20),
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.CosineAnnealingLR(o, 9)], [3]
        ),
    ],
)
@pytest.mark.parametrize("spoilt", [(0,), (4,)])
def test_schedulers_tick_by_update(make: Callable[[Any], Any], spoilt: tuple[int, ...]) -> None:
    network, optimizer = small()
    scheduler = make(optimizer)
    run(network, optimizer, data(*spoilt), scheduler=scheduler)
    other_network, other = small()
    other_scheduler = make(other)
    for batch in data(*spoilt):
        if bool(batch.isfinite().all()):
            plain_loop(other_network, other, [batch])
            other_scheduler.step()
    assert same(same_state(network, optimizer), same_state(other_network, other))
    assert same(scheduler.state_dict(), other_scheduler.state_dict())


def test_the_moving_average_is_one_of_applied_updates() -> None:
    network, optimizer = small()
    hardened = run(network, optimizer, data(2), ema_decay=0.9)
    other_network, other = small()
    clean = run(other_network, other, [batch for batch in data(2) if bool(batch.isfinite().all())], ema_decay=0.9)
    assert same(hardened.ema.state_dict(), clean.ema.state_dict())
    assert not same(dict(hardened.ema.tensors()), dict(network.named_parameters()))


def test_step_only_skips_as_grad_scaler_does() -> None:
    """Its own first bad step is shown and run again; BatchNorm keeps the NaN."""
    network, optimizer = small()
    hardened = run(network, optimizer, data(2, 5), mode="step_only")
    assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    assert not bool(network.state_dict()["1.running_mean"].isfinite().all())
    assert (hardened.updates, hardened.num_refused) == (6, 2)


def test_open_is_a_bare_loop_with_a_capsule(tmp_path: Path) -> None:
    network, optimizer = small()
    hardened = run(network, optimizer, data(6), mode="open", capsules=tmp_path)
    assert not any(bool(parameter.isfinite().any()) for parameter in network.parameters())
    assert [event["kind"] for event in hardened.events] == ["capsule_saved"]
    other_network, other = small()
    plain_loop(other_network, other, data()[:6])
    assert same(dict(read_capsule(tmp_path / "step_00000006").state["network"]), dict(other_network.state_dict()))


def scaled(
    mode: Any, spoilt: tuple[int, ...], initial: float, capsules: Path | None = None
) -> tuple[Any, nn.Module, torch.amp.GradScaler]:
    network, optimizer = small(False, momentum=0.0)  # GradScaler itself loses a momentum whose first step it skips
    scaler = torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=3)
    hardened = harden(network, optimizer, mode=mode, scaler=scaler, capsules=capsules)
    for batch in hardened.batches(data(*spoilt, count=12)):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(network, batch)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        hardened.step(loss)
        optimizer.zero_grad()
    return hardened, network, scaler


def test_the_users_scaler_is_driven_by_the_gate() -> None:
    """Without bad steps the numbers are those of GradScaler itself, its scale and its count too."""
    _, network, scaler = scaled("closed", (), 8.0)
    other_network, optimizer = small(False, momentum=0.0)
    other = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    for batch in data(count=12):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(other_network, batch)
        other.scale(loss).backward()  # type: ignore[no-untyped-call]
        other.step(optimizer)
        other.update()
        optimizer.zero_grad()
    assert same(network.state_dict(), other_network.state_dict())
    assert scaler.state_dict() == other.state_dict()
    assert other.state_dict()["scale"] == 128.0


def test_a_scale_that_backs_off_writes_no_capsule(tmp_path: Path) -> None:
    hardened, _, _ = scaled("closed", (5,), 2.0**20, tmp_path)
    kinds = [event["kind"] for event in hardened.events]
    assert kinds.index("rescaled") < kinds.index("capsule_saved")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000005"]
    assert read_capsule(tmp_path / "step_00000005").facts["reason"] == "nonfinite_loss"


@pytest.mark.parametrize(("mode", "spoilt"), [("closed", ()), ("closed", (5,)), ("step_only", (4, 5))])
def test_an_overflow_halves_the_users_scale(mode: Any, spoilt: tuple[int, ...]) -> None:
    hardened, network, scaler = scaled(mode, spoilt, 2.0**20)
    assert all(bool(parameter.isfinite().all()) for parameter in network.parameters())
    if mode == "closed":  # no batch is lost to the scale, and none changes it but by an overflow
        assert (hardened.updates, hardened.num_refused) == (12 - len(spoilt), len(spoilt))
        assert "rescaled" in [event["kind"] for event in hardened.events]
    else:  # step by step what GradScaler does
        other_network, optimizer = small(False, momentum=0.0)
        other = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        for batch in data(*spoilt, count=12):
            with torch.autocast("cpu", torch.float16):
                loss = loss_of(other_network, batch)
            other.scale(loss).backward()  # type: ignore[no-untyped-call]
            other.step(optimizer)
            other.update()
            optimizer.zero_grad()
        assert scaler.state_dict() == other.state_dict()
        assert same(network.state_dict(), other_network.state_dict())


def test_a_capsule_of_a_bare_loop_replays_the_step(tmp_path: Path) -> None:
    """With the model and the loss function of its user: the same loss and the same gradients, dropout included."""

    def weighted(network: nn.Module, batch: Any) -> Tensor:
        return loss_of(network, batch["inputs"]) * torch.exp(batch["exponents"]).mean()

    network, optimizer = small()
    batches = [{"inputs": batch, "exponents": np.array([1.0]), "id": f"b{i}"} for i, batch in enumerate(data())]
    for batch in batches:
        batch["exponents"] = torch.tensor([1.0])
    batches[5] = {"inputs": data()[5], "exponents": torch.tensor([99.0]), "id": "b5"}
    hardened = harden(network, optimizer, capsules=tmp_path / "capsules")
    gradients: dict[str, Tensor] = {}
    for batch in hardened.batches(batches):
        loss = weighted(network, batch)
        loss.backward()
        if batch["id"] == "b5" and not gradients:
            gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
        hardened.step(loss)
        optimizer.zero_grad()
    capsule = read_capsule(tmp_path / "capsules" / "step_00000005")
    assert (capsule.facts["origin"], capsule.facts["step"], capsule.facts["reason"]) == ("harden", 5, "nonfinite_loss")
    assert capsule.state["batch"]["id"] == "b5"
    replayed, other = small()
    replayed.load_state_dict(capsule.state["network"])
    other.load_state_dict(capsule.state["optimizer"])
    put_random_state(capsule.state["random"])
    weighted(replayed, capsule.state["batch"]).backward()  # type: ignore[no-untyped-call]
    for name, parameter in replayed.named_parameters():
        assert torch.equal(parameter.grad.nan_to_num(7.0), gradients[name].nan_to_num(7.0))


def test_batches_of_any_kind_go_into_a_capsule(tmp_path: Path) -> None:
    Sample = namedtuple("Sample", "inputs names extra")
    network, optimizer = small()
    hardened = harden(network, optimizer, capsules=tmp_path)
    odd = Sample(data(0)[0], np.array(["a", "b"]), {"array": np.arange(3), "object": object(), "kinds": {None}})
    for batch in hardened.batches([odd]):
        loss = loss_of(network, batch.inputs)
        loss.backward()
        hardened.step(loss)
    batch = read_capsule(tmp_path / "step_00000000").state["batch"]
    assert torch.equal(batch[2]["array"], torch.arange(3))
    assert batch[2]["object"].startswith("<object")
    assert "'a'" in batch[1]


def test_a_run_of_failures_does_not_fill_the_disk(tmp_path: Path) -> None:
    hardened = run(*small(), data(*range(12), count=12), capsules=tmp_path, max_refused_in_a_row=99)
    assert len(list(tmp_path.iterdir())) == 8
    assert sum(event["kind"] == "capsule_left_out" for event in hardened.events) == 4


def test_a_disk_that_cannot_be_written_does_not_end_the_loop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    hardened = run(*small(), data(2), capsules=tmp_path / "file" / "capsules")
    assert (hardened.updates, hardened.num_refused) == (7, 1)
    assert "capsule_left_out" in [event["kind"] for event in hardened.events]


def test_every_refusal_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING, "hpcstab"):
        hardened = run(*small(), data(3), capsules=tmp_path)
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        "step 3: capsule_saved",
        "step 3: step_refused",
    ]
    assert hardened.summary() == "8 steps: 7 applied, 1 refused (1 nonfinite_loss); 1 capsules written"


def test_thresholds_refuse_a_spike() -> None:
    network, optimizer = small()
    hardened = harden(network, optimizer)
    hardened.gate.limit(loss=1e3)
    spiked = data()
    spiked[3] = spiked[3] * 1e6
    for batch in hardened.batches(spiked):
        loss = loss_of(network, batch)
        loss.backward()
        hardened.step(loss)
        optimizer.zero_grad()
    (event,) = hardened.events
    assert (event["step"], event["reason"]) == (3, "spike")
    other_network, other = small()
    plain_loop(other_network, other, [batch for index, batch in enumerate(data()) if index != 3])
    assert same(same_state(network, optimizer), same_state(other_network, other))


def test_finite_gradients_whose_norm_overflows_are_told_apart() -> None:
    network, optimizer = small()
    hardened = harden(network, optimizer)
    for index, batch in enumerate(hardened.batches(data(count=1))):
        loss = loss_of(network, batch)
        loss.backward()
        for parameter in network.parameters():
            parameter.grad.fill_(1e30)
        hardened.step(loss)
        optimizer.zero_grad()
        assert index < 2
    assert [event["reason"] for event in hardened.events] == ["norm_overflow"]


class Spoiling:
    """A loader that spoils the batch at one position, counted over all epochs; or leaves it out."""

    def __init__(self, at: int, leave_out: bool) -> None:
        items = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
        self._loader = torch.utils.data.DataLoader(items, batch_size=4, shuffle=True)  # type: ignore[arg-type]
        self._at, self._leave_out, self._count = at, leave_out, 0

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._loader:
            self._count += 1
            if self._count - 1 != self._at:
                yield batch
            elif not self._leave_out:
                yield batch * math.nan


@pytest.mark.parametrize("at", [0, 3, 4, 6, 11])
def test_several_epochs_of_a_shuffling_loader(at: int) -> None:
    """Each epoch draws its order from the global generator, which has to be where it would be."""
    network, optimizer = small()
    torch.manual_seed(5)
    loader, hardened = Spoiling(at, leave_out=False), harden(network, optimizer)
    for _ in range(3):
        for batch in hardened.batches(loader):
            loss = loss_of(network, batch)
            loss.backward()
            hardened.step(loss)
            optimizer.zero_grad()
    other_network, other = small()
    torch.manual_seed(5)
    without = Spoiling(at, leave_out=True)
    for _ in range(3):
        plain_loop(other_network, other, without)
    assert same(same_state(network, optimizer), same_state(other_network, other))


def test_a_loop_that_is_left_early_keeps_a_sound_state() -> None:
    network, optimizer = small()
    hardened = harden(network, optimizer)
    for index, batch in enumerate(hardened.batches(data(4))):
        loss = loss_of(network, batch)
        loss.backward()
        hardened.step(loss)
        optimizer.zero_grad()
        if index == 5:
            break
    other_network, other = small()
    plain_loop(other_network, other, data()[:4])
    assert same(same_state(network, optimizer), same_state(other_network, other))
    assert (hardened.updates, hardened.num_refused) == (4, 1)
    assert [event["kind"] for event in hardened.events] == ["step_refused", "loop_left"]
    for batch in hardened.batches(data()[:3]):  # and it goes on from there
        loss = loss_of(network, batch)
        loss.backward()
        hardened.step(loss)
        optimizer.zero_grad()
    assert hardened.updates == 7


def test_too_many_in_a_row_end_the_loop_and_the_model_is_sound() -> None:
    network, optimizer = small()
    with pytest.raises(NumericsError, match=r"4 steps in a row were refused, the last for nonfinite_loss \(loss nan"):
        run(network, optimizer, data(*range(2, 8)), max_refused_in_a_row=4)
    other_network, other = small()
    plain_loop(other_network, other, data()[:2])
    assert same(same_state(network, optimizer), same_state(other_network, other))


@pytest.mark.parametrize("what", ["0.weight", "momentum_buffer of 0.weight"])
def test_a_state_that_is_not_finite_ends_the_loop(what: str) -> None:
    network, optimizer = small()
    hardened = harden(network, optimizer)
    first = next(network.parameters())
    with pytest.raises(NumericsError, match=f"before step 4 the state itself was not finite: 1 tensors, first {what}"):
        for index, batch in enumerate(hardened.batches(data())):
            if index == 4:
                tensor = first.data if what == "0.weight" else optimizer.state[first]["momentum_buffer"]
                tensor.view(-1)[0] = math.nan
            loss = loss_of(network, batch) * (math.nan if index == 4 else 1.0)
            loss.backward()
            hardened.step(loss)
            optimizer.zero_grad()


def body(network: nn.Module, batch: Tensor) -> Tensor:
    loss = loss_of(network, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("misuse", ["twice", "outside", "beside", "before"])
def test_a_step_past_the_gate_is_refused_and_nothing_is_lost(misuse: str) -> None:
    network, optimizer = small()
    hardened = harden(network, optimizer)
    if misuse == "outside":
        with pytest.raises(ConfigError, match="called twice for one batch or outside of its loop"):
            hardened.step(body(network, data()[0]))
        return
    messages = {"twice": "called twice for one batch", "beside": "past the gate", "before": "past the gate"}
    with pytest.raises(ConfigError, match=messages[misuse]):
        for batch in hardened.batches(data()):
            loss = body(network, batch)
            if misuse == "before":
                optimizer.step()
            hardened.step(loss)
            if misuse == "beside":
                optimizer.step()
            hardened.step(loss)
    other_network, other = small()
    if misuse != "before":
        plain_loop(other_network, other, data()[:1])
        assert same(dict(network.named_parameters()), dict(other_network.named_parameters()))
    body(network, data()[0])
    optimizer.step()  # outside of the loop the optimizer is the user's own again


def test_what_the_gate_does_for_the_scaler_is_not_done_twice() -> None:
    network, optimizer = small()
    scaler = torch.amp.GradScaler("cpu")
    hardened = harden(network, optimizer, scaler=scaler)
    with pytest.raises(ConfigError, match=r"scaler.unscale_\(\) or scaler.step\(\) was called"):
        for batch in hardened.batches(data()):
            loss = loss_of(network, batch)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            hardened.step(loss)


def test_bad_input_is_an_error_that_teaches() -> None:
    network, optimizer = small()
    with pytest.raises(ConfigError, match="no parameters that require a gradient"):
        harden(nn.ReLU(), optimizer)
    with pytest.raises(ConfigError, match="LBFGS"):
        harden(network, torch.optim.LBFGS(network.parameters()))
    with pytest.raises(ConfigError, match="got a str as optimizer"):
        harden(network, "adam")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got a float as scaler"):
        harden(network, optimizer, scaler=65536.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'open' applies every update"):
        harden(network, optimizer, mode="open", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(ConfigError, match="mode 'shut'"):
        harden(network, optimizer, mode="shut")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_grad_norm is -1"):
        harden(network, optimizer, max_grad_norm=-1.0)
    with torch.no_grad():
        next(network.parameters()).fill_(math.nan)
    with pytest.raises(NumericsError, match="1 parameter tensors are not finite already"):
        harden(network, optimizer)


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
def test_a_capsule_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    run(*small(), data(2), capsules=tmp_path)
    folder = tmp_path / "step_00000002"
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_capsule(folder)
    with pytest.raises(CheckpointError, match="no such capsule"):
        read_capsule(tmp_path / "step_00000003")


def test_a_capsule_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstab.stability.replay.capsule.CAPSULE_VERSION", 99)
    run(*small(), data(2), capsules=tmp_path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="capsule of version 99; this hpcstab reads 1"):
        read_capsule(tmp_path / "step_00000002")


def test_harden_is_there_when_it_is_asked_for() -> None:
    code = (
        "import sys, hpcstab; assert 'torch' not in sys.modules; import hpcstab.stability.numerics;"
        "assert 'hpcstab.stability.gate.gate' not in sys.modules;"
        "from hpcstab.stability import harden; assert hpcstab.harden is harden"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


def test_the_example_says_what_the_readme_shows(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    runpy.run_path(str(REPOSITORY / "examples" / "bare_loop.py"), run_name="__main__")
    said = capsys.readouterr().out.splitlines()
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(said) == 4
    for line in said:
        assert f"    {line}" in readme
    assert "step 3: step_refused (reason nonfinite_loss, loss nan, grad_norm nan)" in caplog.messages
