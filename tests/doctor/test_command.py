"""The verb: exit codes, several paths, JSON, and what it says to type next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.cli.app import main
from tests.doctor.making import saved, trained


def doctor(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit code, what was printed) of the whole command, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["hpcstab", "doctor", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """One checkpoint of each kind that an exit code tells."""
    state = trained()
    made = {"healthy": saved(tmp_path, state, "healthy.pt")}
    state["model"]["encoder.1.running_mean"][3] = torch.nan
    made["statistics"] = saved(tmp_path, state, "statistics.pt")
    state["model"]["head.weight"][0, 0] = torch.inf
    made["weights"] = saved(tmp_path, state, "weights.pt")
    made["unreadable"] = tmp_path / "unreadable.pt"
    made["unreadable"].write_bytes(b"")
    return made


@pytest.mark.parametrize(
    ("names", "options", "code"),
    [
        (["healthy"], [], 0),
        (["statistics"], [], 1),
        (["weights"], [], 1),
        (["unreadable"], [], 3),
        (["healthy", "unreadable", "statistics"], [], 3),
        (["statistics", "healthy"], [], 1),
        (["healthy"], ["--fix"], 0),
        (["statistics"], ["--fix"], 0),
        (["weights"], ["--fix"], 1),
        (["unreadable"], ["--fix"], 3),
        (["statistics", "weights"], ["--fix"], 1),
        (["weights"], ["--fix", "--against", "healthy"], 0),
        (["healthy"], ["--out", "x.pt"], 2),
        (["healthy", "statistics"], ["--fix", "--out", "x.pt"], 2),
        (["statistics"], ["--fix", "--against", "unreadable"], 2),
        (["statistics"], ["--fix", "--out", "statistics"], 2),
    ],
)
def test_exit_codes(
    capsys: pytest.CaptureFixture[str], paths: dict[str, Path], names: list[str], options: list[str], code: int
) -> None:
    arguments = [paths[name] for name in names] + [paths.get(option, option) for option in options]
    assert doctor(capsys, *arguments)[0] == code


def test_wrong_paths(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("nowhere.pt", "empty"):
        code, text = doctor(capsys, tmp_path / path)
        assert code == 2
        assert text.startswith(f"hpcstab: {tmp_path / path}: ")


def test_what_it_says(capsys: pytest.CaptureFixture[str], paths: dict[str, Path]) -> None:
    """Short, by part, and the next command at the end works."""
    _, text = doctor(capsys, paths["statistics"])
    lines = text.splitlines()
    assert lines[0].startswith(f"SICK  {paths['statistics']}")
    assert "    model.encoder.1.running_mean  1 NaN of 8, first at [3]" in lines
    assert lines[-1] == f"  next: hpcstab doctor {paths['statistics']} --fix"
    code, text = doctor(capsys, *lines[-1].split()[3:])
    assert code == 0
    assert text.startswith("FIXED  ")
    assert "ANOTHER FUNCTION" in text


def test_a_healthy_file_takes_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": torch.ones(2, 2)})
    assert doctor(capsys, path)[1].count("\n") == 1
    assert doctor(capsys, tmp_path)[1].count("\n") == 1


def test_many_tensors_are_counted_not_listed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = saved(tmp_path, {f"layer{index}.weight": torch.full((2,), torch.nan) for index in range(50)})
    _, text = doctor(capsys, path)
    assert "and 38 more" in text
    assert len(text.splitlines()) < 20


def test_json(capsys: pytest.CaptureFixture[str], paths: dict[str, Path]) -> None:
    found: list[dict[str, Any]] = json.loads(doctor(capsys, paths["healthy"], paths["statistics"], "--json")[1])
    assert [each["verdict"] for each in found] == ["healthy", "sick"]
    (finding,) = [each for each in found[1]["findings"] if each["severity"] == "sick"]
    assert (finding["name"], finding["num_nan"], finding["first_index"]) == ("model.encoder.1.running_mean", 1, [3])
    (repaired,) = json.loads(doctor(capsys, paths["statistics"], "--fix", "--json")[1])
    assert repaired["out"] == str(paths["statistics"].with_name("statistics_FIXED.pt"))
    assert repaired["changes"][0]["how"] == "reset"
    assert repaired["after"]["verdict"] == "healthy"
