"""What differs, who set it and why: from the folders alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from hpcstab.report.differences import config_differences
from hpcstab.rundir import RunDir
from tests.report.synthetic import make_run
from tests.report.test_compare import section_of


def test_values_setters_and_reasons_after_a_copy(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "runs", variant) for variant in ("before", "after", "cured")]
    copies = [RunDir(Path(shutil.copytree(run.path, tmp_path / "copy" / run.run_id))) for run in runs]
    found = {d.key: d for d in config_differences(section_of(copies))}
    norm = found["network.normalization"]
    assert norm.values == ("gdn", "batchnorm", "gdn_bounded")
    assert [setter and (setter.name, setter.kind) for setter in norm.setters] == [
        None,
        ("batchnorm", "cure"),
        ("gdn_bounded", "cure"),
    ]
    assert norm.setters[1] is not None and "BatchNorm3d" in norm.setters[1].why
    assert found["optimizer.lr"].values == ("0.001", "0.0001", "0.001")
    assert "model" not in found and "data.num_samples" not in found


def test_the_command_line_wins_over_a_fix(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "after"), make_run(tmp_path, "after", settings=("optimizer.lr=0.5",))]
    (difference,) = config_differences(section_of(runs))
    assert difference.values == ("0.0001", "0.5")
    assert [setter and setter.name for setter in difference.setters] == ["lower_lr", "--set"]


def test_durations_are_one_value_and_an_unreadable_config_is_a_question_mark(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "after", settings=("trainer.evaluate_every={epochs: 2}",)),
        make_run(tmp_path, "before"),
        make_run(tmp_path, "cured"),
    ]
    runs[2].config_yaml.unlink()
    found = {d.key: d for d in config_differences(section_of(runs))}
    assert found["trainer.evaluate_every"].values == ("100 steps", "2 epochs", "?")


def test_guards_are_one_row_and_one_word(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path, "before"),
        make_run(tmp_path, "cured"),
        make_run(tmp_path, "cured", settings=("stability.guards.stalled=null",)),
    ]
    found = {d.key: d for d in config_differences(section_of(runs)) if d.key.startswith("stability.guards")}
    assert list(found) == ["stability.guards"]
    assert found["stability.guards"].values == ("none", "default", "default with stalled=None")
    assert [setter and setter.name for setter in found["stability.guards"].setters] == [None, "hardened", "--set"]
