"""Claims: held only if all seeds agree, refuted by one, and otherwise the reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcstab.config import load_experiment
from hpcstab.metrics import read_rows
from hpcstab.report.claims import ClaimAnswer, answer_claims
from hpcstab.report.facts import section_rows
from hpcstab.rundir import RunDir
from tests.conftest import MODELS, MakeRun
from tests.report.synthetic import edit_identity, make_run
from tests.report.test_compare import section_of


def answer(runs: list[RunDir], **claim: Any) -> ClaimAnswer:
    full = {"says": "x", "where": "y", "variant": "after", "range": None, "below_variant": None, "needs": None}
    for run in runs:
        edit_identity(run, claims=[{**full, "scales": [], **claim}])
    section = section_of(runs)
    (found,) = answer_claims(section, section_rows(section))
    return found


def test_held_in_all_seeds(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "after", seed, gain=1.0 + seed) for seed in (0, 1)]
    found = answer(runs, metric="psnr", range=[14.5, 16.5])
    assert (found.answer, found.reason, found.measured) == ("held", "in 2 of 2", "15, 16")
    assert found.test == "after: psnr from 14.5 to 16.5"


def test_one_seed_refutes(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "after", seed, gain=1.0 + seed) for seed in (0, 1)]
    found = answer(runs, metric="psnr", range=[None, 15.5])
    assert (found.answer, found.reason) == ("refuted", "held in 1 of 2")


def test_a_dead_run_is_in_no_open_range(tmp_path: Path) -> None:
    found = answer([make_run(tmp_path, "after", fails_at=20, gain=30.0)], metric="psnr", range=[0, None])
    assert (found.answer, found.measured) == ("refuted", "nan")
    assert answer([make_run(tmp_path, "after", fails_at=20)], metric="loss_change", range=[None, 0]).answer == "refuted"
    assert answer([make_run(tmp_path, "after", fails_at=20)], metric="max_grad_norm", range=[0, None]).measured == "inf"


def test_nan_from_the_first_batch(tmp_path: Path) -> None:
    claim: dict[str, Any] = {"variant": "before", "metric": "first_nonfinite_step", "range": [0, 0]}
    assert answer([make_run(tmp_path, "before", fails_at=0)], **claim).answer == "held"
    assert answer([make_run(tmp_path, "before", fails_at=8)], **claim).answer == "refuted"
    never = answer([make_run(tmp_path, "before")], **claim)
    assert (never.answer, never.measured) == ("refuted", "never")


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ({"scales": ["full"]}, "at scale quick; testable at full"),
        ({"needs": "cuda"}, "needs a CUDA device"),
        ({"variant": "cured"}, "no run of cured"),
        ({"metric": "no_such_column"}, "1 of 1 runs have no final no_such_column (completed)"),
    ],
)
def test_not_testable_and_why(tmp_path: Path, claim: dict[str, Any], reason: str) -> None:
    found = answer([make_run(tmp_path, "after")], **{"metric": "psnr", "range": [0, 99], **claim})
    assert found.answer == "not testable" and reason in found.reason


@pytest.mark.parametrize("state", ["running", "failed", "lost", "queued"])
def test_a_run_that_has_not_ended_holds_nothing(tmp_path: Path, state: str) -> None:
    runs = [make_run(tmp_path, "after", 0), make_run(tmp_path, "after", 1, state=state, steps=20)]
    found = answer(runs, metric="nonfinite", range=[0, 0])
    assert found.answer == "not testable" and state in found.reason


def test_overridden_runs_do_not_answer_for_the_variant(tmp_path: Path) -> None:
    found = answer([make_run(tmp_path, "after", settings=("optimizer.lr=0.01",))], metric="psnr", range=[0, 99])
    assert found.answer == "not testable" and "without --set (there is after{optimizer.lr=0.01})" in found.reason


def test_runs_on_real_data_answer_for_the_variant_and_say_so(tmp_path: Path) -> None:
    """Unless the claim is about the data, or the variant was run as it is."""
    real = ("data.source=real",)
    runs = [make_run(tmp_path, "after", gain=1.0, settings=real)]
    found = answer(runs, metric="psnr", range=[0, 99])
    assert (found.answer, found.test) == ("held", "after{data.source=real}: psnr from 0 to 99")
    about_data = answer(runs, metric="data_num_train_items", range=[0, 1])
    assert about_data.answer == "not testable" and "without --set" in about_data.reason

    runs.append(make_run(tmp_path, "before", gain=2.0))
    elsewhere = answer(runs, metric="psnr", below_variant="before")
    assert (elsewhere.answer, elsewhere.reason) == ("not testable", "no run of before on the same data")
    runs.append(make_run(tmp_path, "before", gain=0.5, settings=real))
    assert answer(runs, metric="psnr", below_variant="before").answer == "refuted"
    runs.append(make_run(tmp_path, "after", gain=1.5))
    assert answer(runs, metric="psnr", range=[0, 99]).test == "after: psnr from 0 to 99"


def test_below_another_variant_in_the_same_seed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, v, s, gain=g) for v, s, g in [("before", 0, 2.0), ("after", 0, 1.0), ("before", 1, 0.5)]]
    assert answer(runs, metric="psnr", below_variant="before").answer == "held"
    runs.append(make_run(tmp_path, "after", 1, gain=1.0))
    assert answer(runs, metric="psnr", below_variant="before").answer == "refuted"


@pytest.mark.parametrize("model", MODELS)
def test_every_claim_of_the_yaml_names_a_column_that_runs_have(train_run: MakeRun, model: str) -> None:
    columns = set(section_rows(section_of([train_run(model, "before")]))[0])
    metrics = {claim.metric for claim in load_experiment(model).file.claims}
    assert metrics <= columns, metrics - columns


def test_the_largest_finite_value_of_a_diagnostic_is_a_column(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    header, *rows = run.metrics_csv.read_text().splitlines()
    values = [3.0, float("inf"), 7.0, float("nan")]
    rows = [f"{row},{values[index % 4]}" for index, row in enumerate(rows)]
    run.metrics_csv.write_text("\n".join([f"{header},diag_spread", *rows]) + "\n")
    (row,) = section_rows(section_of([run]))
    assert row["max_diag_spread"] == 7.0


def test_a_run_has_the_epoch_of_its_failure_and_where_its_terms_began_and_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path, fails_at=12)
    (facts,) = section_rows(section_of([run]))
    rows = read_rows(run.metrics_csv)
    assert facts["first_nonfinite_epoch"] == int(rows[12]["epoch"])
    assert facts["loss_mse_first"] == float(rows[0]["loss_mse"])
    assert facts["loss_sliced_wasserstein_last"] == pytest.approx(
        float(rows[-1]["loss_sliced_wasserstein"]), nan_ok=True
    )
    healthy = make_run(tmp_path, "after")
    assert section_rows(section_of([healthy]))[0]["first_nonfinite_epoch"] is None
