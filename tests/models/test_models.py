"""What holds for every model: it trains at scale tiny, repeats itself bit for bit, and judges itself."""

from __future__ import annotations

import pytest

from hpcstab.config import distinct_variants
from hpcstab.execute import load_task, read_config
from hpcstab.judgement import judge
from hpcstab.metrics import read_history, read_rows
from hpcstab.rundir import read_json
from tests.conftest import MODELS, MakeRun, experiment_of, with_one_change

VARIANTS = [(model, variant) for model in MODELS for variant in distinct_variants(experiment_of(model))]
FIXES = [(model, fix) for model in MODELS for fix in experiment_of(model).file.fixes]


def numbers(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Rows without what a clock or the machine writes."""
    return [
        {name: cell for name, cell in row.items() if name not in ("time_s", "step_time_s", "peak_mem_gib")}
        for row in rows
    ]


@pytest.mark.parametrize(("model", "variant"), VARIANTS)
def test_trains_and_repeats_bit_for_bit(train_run: MakeRun, model: str, variant: str) -> None:
    first, second = (train_run(model, variant) for _ in range(2))
    rows = read_rows(first.metrics_csv)
    assert rows
    assert numbers(rows) == numbers(read_rows(second.metrics_csv))
    status, task = read_json(first.status_json), read_json(first.task_json)
    assert status is not None
    assert task is not None
    assert status["state"] in ("completed", "diverged")
    assert status["judgement"] == judge(first).as_json()
    assert any(baseline["role"] == "floor" for baseline in task["baselines"]["validation"])


@pytest.mark.parametrize("variant", ["before", "after", "cured"])
@pytest.mark.parametrize("model", MODELS)
def test_bf16_is_a_setting_like_any_other(train_run: MakeRun, model: str, variant: str) -> None:
    run = train_run(model, variant, settings=["precision.dtype=bf16", "trainer.max_steps=2"])
    assert len(read_rows(run.metrics_csv)) == 2


@pytest.mark.parametrize(("model", "fix"), FIXES)
def test_every_fix_alone_trains(train_run: MakeRun, model: str, fix: str) -> None:
    run = train_run(model, with_one_change(experiment_of(model), fix), settings=["trainer.max_steps=2"])
    status = read_json(run.status_json)
    assert status is not None
    history = read_history(run.metrics_csv)
    if status["state"] == "halted":  # by guards, where every batch is refused
        assert {row["outcome"] for row in history.values()} <= {"skipped", "held"}
        return
    assert status["state"] in ("completed", "diverged")
    assert list(history) == [0, 1]


@pytest.mark.parametrize("model", MODELS)
def test_another_seed_gives_other_numbers(train_run: MakeRun, model: str) -> None:
    losses = [[row["loss"] for row in read_rows(train_run(model, "cured", seed=seed).metrics_csv)] for seed in (0, 1)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("model", MODELS)
def test_variants_of_one_seed_see_the_same_data(make_run: MakeRun, model: str) -> None:
    """Pairs: the same seed gives before, after and cured the same items and the same split."""
    tasks = []
    for variant in ("before", "after", "cured"):
        run = make_run(model, variant)
        reference, config = read_config(run)
        tasks.append(load_task(reference, config, 0, "test"))
    for split in ("train", "validation"):
        assert len({tuple(task.dataset(split).ids) for task in tasks}) == 1
    assert tasks[0].check_data() == []
