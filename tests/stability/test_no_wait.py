"""A healthy step waits for nobody: it runs on tensors without values, which raise where the host asks for one.

``FakeTensorMode`` raises on ``.item()``, ``.tolist()``, ``.numpy()`` and a tensor in an ``if`` alike. On a GPU the same
steps run with CUDA's own check for synchronising calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from hpcstab.execute import load_task, read_config
from hpcstab.stability import harden
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer
from tests.conftest import MakeRun
from tests.stability.loops import ResNet, Transformer
from tests.training.toy import ToyTask, toy_config, toy_trainer

NUM_STEPS = 2  # the host reads the first one after the third
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, fused=True),
}
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(3, 10), lambda: torch.randn(4, 3)),
    "resnet18": (lambda: ResNet((64, 128, 256, 512)), lambda: torch.randn(2, 3, 32, 32)),
    "transformer": (lambda: Transformer(16, 4, 10, 6), lambda: torch.randint(10, (2, 6))),
}


@contextmanager
def without_values() -> Iterator[None]:
    """Parameters, gradients and optimizer state keep their values: nothing is computed."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def train(
    model: str, optimizer: str, precision: torch.dtype | None, at_end: Callable[[Tensor], Any], **options: Any
) -> int:
    """Two steps of the public API in a loop with one more thing at the end of its body; how many are in flight then."""
    make, batch = MODELS[model]
    network = make()
    stepping = OPTIMIZERS[optimizer](network.parameters())
    scaler = torch.amp.GradScaler("cpu") if precision == torch.float16 else None
    hardened = harden(network, stepping, scaler=scaler, **options)
    batches = [batch() for _ in range(NUM_STEPS)]
    with without_values():
        loop = hardened.batches(batches)
        try:
            for _ in range(NUM_STEPS):
                with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
                    loss = network(next(loop)).float().square().mean()
                (scaler.scale(loss) if scaler else loss).backward()
                hardened.step(loss)
                stepping.zero_grad()
                at_end(loss)
            return len(hardened._in_flight)
        finally:
            hardened._in_flight.clear()  # nobody can read them


PAIRS = [("linear", "sgd"), ("linear", "adam"), ("resnet18", "sgd"), ("transformer", "adamw")]


@pytest.mark.parametrize(("model", "optimizer"), PAIRS)
def test_the_public_step_waits_for_nothing(model: str, optimizer: str) -> None:
    assert train(model, optimizer, None, lambda loss: None, max_grad_norm=1.0, ema_decay=0.9) == NUM_STEPS


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_nor_in_half_precision(precision: torch.dtype) -> None:
    train("transformer", "adamw", precision, lambda loss: None, max_grad_norm=1.0)


@pytest.mark.parametrize(
    "waits",
    [
        lambda loss: loss.item(),
        lambda loss: loss.detach().tolist(),
        lambda loss: bool(loss.isnan()),
        lambda loss: float(loss),
        lambda loss: loss.detach().numpy(),
    ],
    ids=["item", "tolist", "bool", "float", "numpy"],
)
def test_a_loop_that_waits_is_caught(waits: Callable[[Tensor], Any]) -> None:
    with pytest.raises((DataDependentOutputException, RuntimeError)):
        train("linear", "sgd", None, waits)


def test_an_optimizer_that_is_not_fused_is_the_slower_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "slow", lambda p: torch.optim.AdamW(p))
    with pytest.raises(DataDependentOutputException):
        train("linear", "slow", None, lambda loss: None)


def assert_waits_for_nothing(trainer: Trainer) -> None:
    """Two steps of the project's own runner, with probes and a look at the whole state."""
    trainer.start_batches()
    items = [next(trainer.items) for _ in range(NUM_STEPS)]
    with without_values():
        for item in items:
            trainer.runner.launch(item, 0.01, probes=True, checks=True)
    trainer.records.close()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("gate", ["open", "step_only", "closed"])
def test_the_runner_waits_for_nothing(tmp_path: Path, optimizer: str, gate: str) -> None:
    config = toy_config(
        network={"batchnorm": True},
        optimizer={"name": optimizer, "momentum": 0.9},
        trainer={"ema_decay": 0.9, "micro_batches": 2},
        stability={"gate": gate, "clip_grad_norm": 1.0},
    )
    assert_waits_for_nothing(toy_trainer(tmp_path, ToyTask(config), config)[1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_nor_does_the_runner_in_half_precision(tmp_path: Path, precision: str) -> None:
    scale = {"initial": 1024.0, "growth_every": 10} if precision == "fp16" else None
    config = toy_config(precision={"dtype": precision, "loss_scale": scale}, stability={"gate": "closed"})
    assert_waits_for_nothing(toy_trainer(tmp_path, ToyTask(config), config)[1])


@pytest.mark.parametrize("variant", ["before", "after", "cured"])
def test_nor_does_a_real_model(make_run: MakeRun, variant: str) -> None:
    run = make_run("swae3d", variant)
    model, config = read_config(run)
    assert_waits_for_nothing(build_trainer(load_task(model, config, 0, "test"), config, run, 0, 1, "psnr"))


needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: torch's own check for synchronising calls needs one"
)


@contextmanager
def synchronising_calls_raise() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize(("model", "optimizer"), PAIRS)
def test_no_call_of_a_healthy_step_synchronises_a_gpu(model: str, optimizer: str) -> None:
    make, batch = MODELS[model]
    network = make().cuda()
    stepping = OPTIMIZERS[optimizer](network.parameters())
    hardened = harden(network, stepping, max_grad_norm=1.0, ema_decay=0.9)

    def train_on(batches: list[Tensor]) -> None:
        for each in hardened.batches(batches):
            loss = network(each).square().mean()
            loss.backward()
            hardened.step(loss)
            stepping.zero_grad()

    batches = [batch().cuda() for _ in range(6)]
    train_on(batches[:2])  # the first steps make the optimizer's state
    with synchronising_calls_raise():
        train_on(batches[2:])
    assert hardened.updates == 6


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("gate", ["step_only", "closed"])
def test_no_call_of_the_runner_synchronises_a_gpu(tmp_path: Path, gate: str, precision: str) -> None:
    scale = {"initial": 1024.0, "growth_every": 10} if precision == "fp16" else None
    config = toy_config(
        network={"batchnorm": True},
        trainer={"ema_decay": 0.9, "micro_batches": 2},
        precision={"dtype": precision, "loss_scale": scale},
        stability={"gate": gate, "clip_grad_norm": 1.0},
    )
    trainer = toy_trainer(tmp_path, ToyTask(config), config)[1]
    trainer.start_batches()
    given = [trainer.runner.launch(next(trainer.items), 0.01, probes=True, checks=True) for _ in range(2)]
    with synchronising_calls_raise():
        given += [trainer.runner.launch(next(trainer.items), 0.01, probes=True, checks=True) for _ in range(4)]
    trainer.records.close()
    assert [pending.read().refused for pending in given] == [False] * 6
