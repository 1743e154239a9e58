"""A capsule, carried anywhere, runs its step again to the bit; re-runs tell what would have prevented it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.checkpoint import write_checkpoint
from hpcstab.checkpoint.format import MANIFEST, STATE
from hpcstab.cli import replay as verb
from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.errors import EXIT_NO_ANSWER, EXIT_WRONG_REQUEST, CheckpointError, ConfigError, HpcstabError
from hpcstab.execute import execute, load_task, replay
from hpcstab.identity import create_run
from hpcstab.rundir import RunDir
from hpcstab.stability.gate.loss_scale import LossScale
from hpcstab.stability.random_state import take_random_state
from hpcstab.stability.replay.capsule import read_capsule, write_capsule
from hpcstab.stability.replay.failing_step import FailingStep, Measured
from hpcstab.stability.replay.last_update import take_back
from hpcstab.stability.replay.replay import replay as replay_step
from hpcstab.stability.replay.replayed import Replayed
from hpcstab.stability.replay.text import replay_text
from tests.stability.replayable import FAULTY_STEP, Config, Task, config_with
from tests.test_architecture import PACKAGE, imports_of
from tests.training.toy import toy_trainer

FACTS = {"run_id": "toy", "step": 7, "update": 7, "rank": 0, "device": "cpu", "ids": []}
"""What a capsule adds to a replay, as text."""


def failed_run(root: Path, config: Config) -> RunDir:
    run, trainer = toy_trainer(root, Task(config, 0), config)
    trainer.train()
    trainer.records.close()
    return run


def carried(root: Path, config: Config) -> Path:
    """The capsule of a failed run, alone in another folder."""
    run = failed_run(root / "runs", config)
    capsule = root / "elsewhere" / "capsule"
    shutil.copytree(run.capsule(FAULTY_STEP), capsule)
    shutil.rmtree(run.path)
    return capsule


def rerun(replayed: Replayed, name: str) -> Measured:
    return next(each.measured for each in replayed.replay.reruns if each.name == name)


@pytest.mark.parametrize("gate", ["open", "step_only", "closed"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "sgd", "momentum": 0.9}, "scheduler": {"name": "cosine"}},
        {"trainer": {"ema_decay": 0.9, "micro_batches": 2}},
        {"precision": {"dtype": "bf16"}},
    ],
    ids=["adam", "sgd", "parts", "bf16"],
)
def test_a_capsule_replays_to_the_bit(tmp_path: Path, gate: str, changes: dict[str, Any]) -> None:
    config = config_with("log", stability={"gate": gate}, **changes)
    replayed = replay(carried(tmp_path, config))
    assert replayed.replay.same is True
    root = replayed.replay.finding.root
    assert root is not None
    assert (root.name, root.module, root.direction) == ("aten.log.default", "1", "forward")
    assert root.place is not None
    assert "amax" in root.place.text
    assert replayed.replay.finding.terms == ("mse",)
    assert replayed.replay.advice.verdict == "layer"


def test_the_task_is_built_with_the_threads_that_the_step_ran_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that computes before it is there took minutes with two threads on a busy machine."""
    folder = carried(tmp_path, config_with("log"))
    ran_with = read_capsule(folder).facts["num_threads"]
    seen = []

    def load(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return load_task(*arguments)

    monkeypatch.setattr("hpcstab.execute.load_task", load)
    torch.set_num_threads(ran_with + 1)
    try:
        replay(folder)
        assert (seen, torch.get_num_threads()) == ([ran_with], ran_with + 1)
    finally:
        torch.set_num_threads(ran_with)


def test_the_capsule_has_the_learning_rates_of_its_step_and_of_the_update_before(tmp_path: Path) -> None:
    """Not those that the steps behind it in flight have set."""
    warmup = {"name": "constant", "warmup": {"steps": 16}, "min_lr_fraction": 0.0}
    capsule = read_capsule(carried(tmp_path, config_with("log", scheduler=warmup, stability={"gate": "closed"})))
    assert capsule.state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.01 * 8 / 16)
    assert capsule.facts["lr"] == pytest.approx(0.01 * 8 / 16)
    assert capsule.facts["lr_before"] == pytest.approx(0.01 * 7 / 16)


def test_a_step_that_is_not_as_recorded_is_said_to_differ(tmp_path: Path) -> None:
    folder = carried(tmp_path, config_with("exp"))
    capsule = read_capsule(folder)
    facts = {**capsule.facts, "figures": {**capsule.facts["figures"], "loss_size": "1.5"}}
    write_capsule(
        folder, capsule.state, {key: facts[key] for key in facts if key not in ("state_bytes", "state_sha256")}
    )
    assert replay(folder).replay.same is False


def test_a_cast_that_overflows_is_a_matter_of_precision_or_layer(tmp_path: Path) -> None:
    replayed = replay(carried(tmp_path, config_with("narrow")))
    assert replayed.replay.explanation is not None
    assert replayed.replay.explanation.cause == "cast"
    assert not rerun(replayed, "fp64").finite  # the cast stands in the code: no format outside it helps
    assert replayed.replay.advice.verdict == "layer"


def step_with(parameter: float, function: Any, lr: float = 1.0) -> FailingStep:
    """One parameter after one SGD step with momentum, and a loss of it."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 0.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9)
    (network.weight * -parameter / lr).sum().backward()
    optimizer.step()

    def gradients(batch: Tensor, *, precision: str, term: str | None) -> tuple[Tensor, dict[str, Tensor]]:
        loss = function(network(batch)).mean()
        loss.backward()
        return loss, {}

    return FailingStep(network, optimizer, torch.ones(4, 1), gradients, take_random_state())


def test_a_step_too_far_is_a_matter_of_the_learning_rate() -> None:
    replayed = replay_step(step_with(100.0, torch.exp))
    assert replayed.advice.verdict == "learning rate"
    assert {each.name: each.measured.finite for each in replayed.reruns} == {
        "again": False,
        "fp64": True,
        "halved": True,
        "undone": True,
    }


def test_the_same_overflow_from_the_start_is_the_layers() -> None:
    replayed = replay_step(step_with(1.0, lambda values: (values + 200).exp()))
    assert replayed.advice.verdict == "layer"
    assert "bound its input" in replayed.advice.line


def test_an_overflow_that_a_product_with_zero_turns_into_nan_is_named() -> None:
    """A loss term of weight 0 that is multiplied and not left out: the creator is exp, the advice is the product."""
    replayed = replay_step(step_with(100.0, lambda values: values + 0.0 * values.exp()))
    assert math.isnan(replayed.first.loss)
    assert replayed.finding.root is not None
    assert replayed.finding.root.family == "exp"
    assert [each.is_times_zero for each in replayed.finding.path] == [True, False, False]
    assert replayed.advice.verdict == "layer"
    assert "a product with 0 (test_replay.py:" in replayed.advice.line
    assert "mul by 0 (0 x inf = NaN) -> add" in replay_text({**FACTS, **replayed.as_json()})


def test_two_runs_that_differ_are_not_reproducible() -> None:
    calls: list[int] = []

    def unsteady(values: Tensor) -> Tensor:
        calls.append(1)
        return values * (math.nan if len(calls) == 1 else 1.0)

    replayed = replay_step(step_with(1.0, unsteady))
    assert replayed.advice.verdict == "not reproducible"


def test_a_step_that_is_finite_now_was_the_machines_fault() -> None:
    replayed = replay_step(step_with(1.0, torch.square), {"loss": math.nan, "grad_norm": math.nan})
    assert replayed.same is False
    assert replayed.finding.kind == "none"
    assert replayed.advice.verdict == "not reproducible"


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_the_last_update_is_taken_back(kind: str) -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    else:
        made = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        optimizer = made(network.parameters(), lr=0.1, weight_decay=0.0 if kind == "adam" else 0.1)
    states = []
    for _ in range(3):
        states.append([parameter.detach().clone() for parameter in network.parameters()])
        optimizer.zero_grad()
        network(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    after = [parameter.detach().clone() for parameter in network.parameters()]
    take_back(optimizer, 1.0)
    for parameter, before, now in zip(network.parameters(), states[-1], after, strict=True):
        assert torch.allclose(parameter, before, atol=1e-6)
        assert not torch.allclose(parameter, now, atol=1e-6)


def test_an_update_that_cannot_be_known_is_said_so() -> None:
    network = nn.Linear(2, 1)
    plain = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(CheckpointError, match="knows of no update"):
        take_back(plain, 0.5)


@pytest.mark.parametrize("variant", ["before", "before+first_batch_init"])
def test_the_radicand_of_the_raw_gdn_is_named(
    tmp_path: Path, variant: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The natural failure of swae3d: its line (told from where one stands), its module, from the run that went NaN."""
    experiment = load_experiment("swae3d")
    settings = parse_overrides(["optimizer.lr=3e-2", "trainer.max_steps=12", "trainer.evaluate_every={steps: 12}"])
    run = create_run(tmp_path, experiment, resolve(experiment, variant, "tiny", settings), 0)
    assert execute(run, 1).state == "diverged"
    monkeypatch.chdir(PACKAGE.parent)
    verb.replay(str(run.path))
    shown = capsys.readouterr().out
    assert "\n          hpcstab/models/swae3d/network.py:" in shown
    monkeypatch.chdir(tmp_path)
    verb.replay(str(run.path))
    shown = capsys.readouterr().out
    verb.replay(str(run.path), as_json=True)
    known = json.loads(capsys.readouterr().out)
    creator = known["creator"]
    assert creator["operation"] in ("aten.rsqrt.default", "aten.sqrt.default")
    assert "radicand.rsqrt()" in creator["text"]
    assert "network.py" in creator["place"]
    assert creator["module"].startswith(("encoder.features.", "decoder.features."))
    assert creator["inputs"][0]["minimum"] < 0
    assert known["same_as_recorded"] is True
    assert (known["cause"]["cause"], known["advice"]["verdict"]) == ("domain", "layer")
    for word in (creator["place"], creator["module"], creator["text"], "re-runs", "advice    layer: "):
        assert word in shown


def refusal(call: Any) -> HpcstabError:
    with pytest.raises(HpcstabError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_no_capsule_is_refused(tmp_path: Path) -> None:
    config = config_with("log")
    run = failed_run(tmp_path, config)
    capsule = run.capsule(FAULTY_STEP)

    missing = refusal(lambda: verb.replay(str(tmp_path / "nowhere"), root=tmp_path))
    assert missing.exit_code == EXIT_WRONG_REQUEST
    assert "no capsule folder" in str(missing)
    assert refusal(lambda: replay(tmp_path / "nowhere")).exit_code == EXIT_WRONG_REQUEST

    checkpoint = refusal(lambda: replay(next(run.checkpoints.glob("step_*"))))
    assert checkpoint.exit_code == EXIT_NO_ANSWER
    assert "is a checkpoint, not a capsule" in str(checkpoint)

    kept = read_capsule(capsule)
    write_checkpoint(tmp_path / "other", kept.state, {"capsule_version": 99})
    assert "version 99" in str(refusal(lambda: replay(tmp_path / "other")))

    partial = {name: part for name, part in kept.state.items() if name != "batch"}
    write_capsule(tmp_path / "partial", partial, {})
    assert "has no batch" in str(refusal(lambda: replay(tmp_path / "partial")))

    for name in (STATE, MANIFEST):
        shutil.copytree(capsule, tmp_path / "torn", dirs_exist_ok=True)
        (tmp_path / "torn" / name).unlink()
        torn = refusal(lambda: replay(tmp_path / "torn"))
        assert torn.exit_code == EXIT_NO_ANSWER
        assert name in str(torn)


def test_a_task_that_cannot_be_built_is_said_so(tmp_path: Path) -> None:
    kept = read_capsule(carried(tmp_path, config_with("log")))
    facts = {name: fact for name, fact in kept.facts.items() if name not in ("state_bytes", "state_sha256")}
    gone = tmp_path / "gone"
    write_capsule(gone, kept.state, {**facts, "model": "gone/task.py:Task"})
    error = refusal(lambda: replay(gone))
    assert isinstance(error, CheckpointError)
    assert "--model" in str(error)
    assert replay(gone, model="tests.stability.replayable:Task").replay.same is True
    assert isinstance(refusal(lambda: replay(gone, model="tests.nowhere:Task")), ConfigError)
    other = {**facts, "config": {**facts["config"], "network": {"batchnorm": False, "fault": "log"}}}
    write_capsule(tmp_path / "unfit", kept.state, other)
    assert "does not fit the network" in str(refusal(lambda: replay(tmp_path / "unfit")))


def test_a_capsule_of_another_training_loop_names_no_task(tmp_path: Path) -> None:
    kept = read_capsule(carried(tmp_path, config_with("log")))
    write_capsule(tmp_path / "bare", kept.state, {"step": 3})
    error = refusal(lambda: replay(tmp_path / "bare"))
    assert error.exit_code == EXIT_NO_ANSWER
    assert "your own code" in str(error)


def test_a_run_without_a_capsule_is_said_so(tmp_path: Path) -> None:
    run = failed_run(tmp_path, config_with("none"))
    assert "has no capsule" in str(refusal(lambda: verb.replay(str(run.path), root=tmp_path)))


def test_a_spike_is_finite_as_it_was(tmp_path: Path) -> None:
    config = config_with("none", stability={"gate": "closed"})
    run, trainer = toy_trainer(tmp_path, Task(config, 0), config)
    trainer.runner.gate.limit(grad_norm=1e-6)
    trainer.train()
    trainer.records.close()
    replayed = replay(run.capsule(0))
    assert replayed.replay.same is True
    assert replayed.replay.advice.verdict == "learning rate"
    assert "refused" in replayed.replay.advice.line


def test_a_loss_scale_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scale could back off no capsule would be written."""
    monkeypatch.setattr(LossScale, "can_back_off", False)
    precision = {"dtype": "fp16", "loss_scale": {"initial": 2.0**30, "growth_every": 100}}
    run = failed_run(tmp_path, config_with("none", precision=precision, stability={"gate": "closed"}))
    replayed = replay(run.capsule(0))
    assert replayed.replay.same is True
    assert replayed.replay.advice.verdict == "precision"
    assert "loss scale 1.07374e+09" in replayed.replay.advice.line


def test_a_step_that_cannot_run_is_said_so() -> None:
    step = step_with(1.0, lambda values: values @ values)
    with pytest.raises(CheckpointError, match="cannot be run here"):
        replay_step(step)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_a_wrong_request(tmp_path: Path) -> None:
    assert refusal(lambda: replay(tmp_path, "cuda")).exit_code == EXIT_WRONG_REQUEST
    assert refusal(lambda: replay(tmp_path, "tpu")).exit_code == EXIT_WRONG_REQUEST


def test_a_healthy_step_loads_nothing_of_it() -> None:
    """What traces or replays is imported by the replay alone, never by the loop."""
    traced = ("tracer", "provenance", "replay", "failing_step", "lineage")
    rooms = [path for room in ("training", "stability") for path in (PACKAGE / room).rglob("*.py")]
    importers = {
        path.stem
        for path in rooms
        for entry in imports_of(path)
        if entry.module.startswith(tuple(f"hpcstab.stability.replay.{name}." for name in traced))
    }
    loop = {"trainer", "step", "recovery", "build", "capsules", "gate", "capsule", "hardened", "hardening"}
    assert not importers & loop
    assert "replaying" in importers
