"""A committed run folder: today's readers read it, and today's trainer writes the same files and fields.

So a schema cannot change by accident. On purpose: ``python -m tests.golden.make``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcstab.execute import read_config
from hpcstab.judgement import judge
from hpcstab.metrics import SCHEMA_VERSION, read_events, read_header, read_history, read_rows
from hpcstab.rundir import RunDir, read_json
from tests.conftest import MakeRun
from tests.golden.make import GOLDEN

RUN = RunDir(GOLDEN)
WRITTEN_BY_JOBS = {"attempts", "logs"}  # the job layer's own tests look at these


def shape(value: Any) -> Any:
    """Keys and JSON types of a value; the elements of a list share the shape of the first."""
    if isinstance(value, dict):
        return {key: shape(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def files(folder: Path) -> set[str]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != "state.pt"]
    names = {path.relative_to(folder).as_posix() for path in found}
    return {name for name in names if name.split("/")[0] not in WRITTEN_BY_JOBS}


@pytest.fixture
def fresh(train_run: MakeRun) -> RunDir:
    return train_run("swae3d", "after")


def test_a_new_run_has_the_same_files(fresh: RunDir) -> None:
    assert files(fresh.path) == files(GOLDEN)


@pytest.mark.parametrize("name", ["metrics.csv", "evals.csv", "probes.csv"])
def test_a_new_run_has_the_same_columns(fresh: RunDir, name: str) -> None:
    assert read_header(fresh.path / name) == read_header(GOLDEN / name)


@pytest.mark.parametrize("name", ["run.json", "task.json", "status.json"])
def test_a_new_run_has_the_same_fields(fresh: RunDir, name: str) -> None:
    new, golden = read_json(fresh.path / name), read_json(GOLDEN / name)
    assert new is not None
    assert golden is not None
    for values in (new, golden):
        values.pop("commit", None)  # text in a checkout, null outside
    assert shape(new) == shape(golden)


def test_a_new_run_has_the_same_events(fresh: RunDir) -> None:
    def kinds(run: RunDir) -> list[tuple[str, ...]]:
        return [(event["kind"], *sorted(event["data"])) for event in read_events(run.events_jsonl)]

    assert kinds(fresh) == kinds(RUN)


def test_the_golden_folder_is_of_this_schema_and_readable() -> None:
    identity = RUN.identity()
    assert identity["schema_version"] == SCHEMA_VERSION
    assert (identity["model"], identity["variant"], identity["seed"]) == ("swae3d", "after", 0)
    _, config = read_config(RUN)
    assert config.trainer.max_steps == 6
    assert list(read_history(RUN.metrics_csv)) == list(range(6))
    assert [row["split"] for row in read_rows(RUN.evals_csv)] == ["validation"] * 3


def test_the_judgement_of_the_golden_folder_is_what_it_was() -> None:
    status = json.loads(RUN.status_json.read_text())
    assert judge(RUN).as_json() == status["judgement"]
    assert (judge(RUN).finite.answer, judge(RUN).learned.answer) == ("yes", "no")
