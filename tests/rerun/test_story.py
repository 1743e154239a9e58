"""Write-up 2's cascade, end to end, on the BatchNorm model there is: one bad batch, and what becomes of the run.

BatchNorm takes an infinite voxel into its running statistics, though the step is left out; the training goes on, no
validation batch is finite any more, and what is saved is sick.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcstab.checkpoint import read_checkpoint
from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.doctor import diagnose, repair
from hpcstab.execute import reestimate
from hpcstab.identity import create_run
from hpcstab.judgement import judge
from hpcstab.metrics import read_evals, read_events, read_history
from hpcstab.rundir import RunDir
from tests.rerun.conftest import Begin, event, plan, train

STEPS, CADENCE, FAULT, DIES = 80, 10, 25, 30
LENGTH = [
    f"trainer.max_steps={STEPS}",
    f"trainer.checkpoint_every={{steps: {CADENCE}}}",
    f"trainer.evaluate_every={{steps: {CADENCE}}}",
    "optimizer.lr=1e-3",
]
BARE = ["stability.gate=step_only"]
FAULTY = [f"data.faults=[{{step: {FAULT}, kind: inf_pixel}}]"]


def trained(root: Path, variant: str, *settings: str) -> tuple[RunDir, str]:
    experiment = load_experiment("swae3d")
    resolved = resolve(experiment, variant, "tiny", parse_overrides([*LENGTH, *settings]))
    run = create_run(root, experiment, resolved, 0)
    return run, train(run)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """The run that was never poisoned."""
    run, state = trained(tmp_path_factory.mktemp("clean"), "after", *BARE)
    assert state == "completed"
    return run


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run, state = trained(tmp_path_factory.mktemp("poisoned"), "after", *BARE, *FAULTY)
    assert state == "diverged"
    return run


def psnr(run: RunDir) -> dict[int, float]:
    return {int(row["step"]): float(row["psnr"]) for row in read_evals(run.evals_csv)}


def test_unprotected_it_ends_without_a_valid_batch_and_with_a_sick_checkpoint(poisoned: RunDir) -> None:
    outcomes = {step: row["outcome"] for step, row in read_history(poisoned.metrics_csv).items()}
    assert [step for step, outcome in outcomes.items() if outcome == "skipped"] == [FAULT]
    assert outcomes[DIES - 1] == "applied", "the training itself went on as if nothing had happened"
    empty = event(poisoned, "eval_empty")
    assert (empty["step"], empty["data"]["num_batches"] > 0) == (DIES, True)
    assert max(psnr(poisoned)) == DIES - CADENCE
    assert not read_checkpoint(poisoned.checkpoint(DIES))[1]["healthy"]


def test_the_doctor_names_exactly_the_poisoned_buffers(poisoned: RunDir) -> None:
    state = read_checkpoint(poisoned.checkpoint(DIES))[0]
    expected = {f"network.{name}" for name, tensor in state["network"].items() if not tensor.isfinite().all()}
    assert expected == {
        f"network.{name}" for name in state["network"] if name.endswith(("running_mean", "running_var"))
    }
    diagnosis = diagnose(poisoned.checkpoint(DIES))
    assert {finding.name for finding in diagnosis.sick} == expected
    assert {finding.part for finding in diagnosis.sick} == {"batchnorm"}


def test_repaired_and_rerun_it_ends_where_the_clean_run_ends(poisoned: RunDir, clean: RunDir, begin: Begin) -> None:
    fixed = repair(poisoned.checkpoint(DIES), reestimate=reestimate)
    assert fixed.out == poisoned.checkpoints / f"step_{DIES:08d}_FIXED"
    run = begin(plan(poisoned, "healthy"))
    assert run.identity()["parent"]["checkpoint"] == fixed.out.name
    assert train(run) == "completed"
    ours, theirs = psnr(run), psnr(clean)
    assert list(ours) == list(range(DIES, STEPS + 1, CADENCE))
    assert theirs[STEPS] - theirs[0] > 0.3, "else the bound below says nothing"
    assert all(abs(ours[step] - theirs[step]) < 0.1 for step in ours)
    assert judge(run).finite.answer == "yes"


def test_from_before_the_fault_it_comes_to_the_same_end(poisoned: RunDir, begin: Begin) -> None:
    """The batch is still bad: a rerun without a fix is the same training."""
    rerun = plan(poisoned, str(FAULT - FAULT % CADENCE))
    assert rerun.told[-1].startswith(f"the parent failed at step {FAULT}, and this comes to the same end; --with FIX")
    assert train(begin(rerun)) == "diverged"


def test_hardened_none_of_it_happens(clean: RunDir, tmp_path: Path) -> None:
    run, state = trained(tmp_path, "after+hardened", *FAULTY)
    assert state == "completed"
    kinds = {entry["kind"] for entry in read_events(run.events_jsonl)}
    assert not kinds & {"eval_batch_failed", "eval_empty", "buffers_nonfinite", "state_nonfinite", "batchnorm_sick"}
    judgement = judge(run)
    assert (judgement.finite.answer, judgement.unmasked.answer) == ("yes", "yes")
    assert (judgement.counts["refused_declared"], judgement.counts["refused_nonfinite"]) == (1, 0)
    checkpoints = sorted(run.checkpoints.glob("step_*"))
    assert checkpoints and all(diagnose(folder).verdict == "healthy" for folder in checkpoints)
    assert abs(psnr(run)[STEPS] - psnr(clean)[STEPS]) < 0.1


def test_a_rerun_with_the_fix_passes_the_fault(poisoned: RunDir, begin: Begin) -> None:
    run = begin(plan(poisoned, str(FAULT - FAULT % CADENCE), "hardened"))
    assert train(run) == "completed"
    assert list(read_history(run.metrics_csv)) == list(range(FAULT - FAULT % CADENCE, STEPS))
