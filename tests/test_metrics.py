"""What a run writes survives what happens to runs: kills, torn lines, non-finite numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from hpcstab.errors import RunError
from hpcstab.metrics import (
    EVENT_KINDS,
    CsvAppender,
    EventLog,
    cut_torn_line,
    read_events,
    read_header,
    read_history,
    read_rows,
)

HEADER = ("step", "loss", "outcome")


def row(step: int, loss: float) -> dict[str, object]:
    return {"step": step, "loss": loss, "outcome": "applied"}


def test_nonfinite_numbers_come_back_through_pandas(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = CsvAppender(path, HEADER)
    values = [0.1 + 0.2, math.nan, math.inf, -math.inf, 5e-324]
    for step, value in enumerate(values):
        file.append(row(step, value))
    file.close()
    read = pd.read_csv(path)["loss"].tolist()
    assert read[0] == values[0]  # to the last bit
    assert math.isnan(read[1])
    assert read[2:] == values[2:]
    assert path.read_text().splitlines()[2:5] == ["1,nan,applied", "2,inf,applied", "3,-inf,applied"]


def test_every_row_is_on_disk_before_the_next(tmp_path: Path) -> None:
    file = CsvAppender(tmp_path / "metrics.csv", HEADER)
    for step in range(3):
        file.append(row(step, 1.0))
        assert len(read_rows(tmp_path / "metrics.csv")) == step + 1
    file.close()


@pytest.mark.parametrize("cut", range(1, 14))
def test_a_torn_last_line_is_cut_before_it_is_parsed(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    file = CsvAppender(path, HEADER)
    file.append(row(0, 1.0))
    file.append(row(1, 1.25))  # "1,1.25,applied\n" has 15 characters
    file.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert [entry["step"] for entry in read_rows(path)] == ["0"]
    reopened = CsvAppender(path, HEADER)
    reopened.append(row(1, 2.0))
    reopened.close()
    assert [entry["loss"] for entry in read_rows(path)] == ["1.0", "2.0"]


def test_a_torn_header_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,lo")
    CsvAppender(path, HEADER).close()
    assert read_header(path) == HEADER


def test_history_is_the_last_row_of_each_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    rows = ["0,1.0,applied", "1,2.0,held", "2,9.0,applied", "1,3.0,applied", "3,4.0,held"]
    path.write_text("\n".join(["step,loss,outcome", *rows, ""]))  # step 3 was held and never ran again
    assert {step: entry["loss"] for step, entry in read_history(path).items()} == {0: "1.0", 1: "3.0", 2: "9.0"}


def test_columns_of_another_task_are_refused(tmp_path: Path) -> None:
    CsvAppender(tmp_path / "m.csv", HEADER).close()
    with pytest.raises(RunError, match="columns of another task"):
        CsvAppender(tmp_path / "m.csv", (*HEADER, "more"))


def test_a_row_must_fit_the_header(tmp_path: Path) -> None:
    file = CsvAppender(tmp_path / "m.csv", HEADER)
    with pytest.raises(ValueError, match="lr"):
        file.append(row(0, 1.0) | {"lr": 1.0})
    with pytest.raises(ValueError, match="may not hold"):
        file.append(row(0, 1.0) | {"outcome": "a,b"})
    file.close()


def test_events_are_valid_json_with_the_kind_of_non_finite_kept(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, attempt=1)
    log.write("first_nonfinite", step=7, update=6, loss=math.nan, grad_norm=math.inf, lr=0.1)
    log.close()
    path.write_bytes(path.read_bytes() + b'{"torn": ')
    (event,) = read_events(path)
    assert event["data"] == {"loss": None, "grad_norm": None, "lr": 0.1}
    assert event["nonfinite"] == {"loss": "nan", "grad_norm": "inf"}
    assert (event["step"], event["update"], event["attempt"], event["rank"]) == (7, 6, 1, 0)
    assert event["kind"] in EVENT_KINDS
    json.loads(path.read_text().splitlines()[0], parse_constant=pytest.fail)


def test_absent_files_have_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.csv") == []
    assert read_events(tmp_path / "none.jsonl") == []
    cut_torn_line(tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_a_full_disk_is_one_clear_error() -> None:
    with pytest.raises(RunError, match=r"cannot be written: No space left on device") as caught:
        CsvAppender(Path("/dev/full"), HEADER)
    assert caught.value.exit_code == 3
