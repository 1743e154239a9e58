"""A YAML with one mistake each: the error names file, dotted path, what was got and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hpcstab.config import load_experiment, model_names, parse_yaml_value
from hpcstab.config.yaml_file import parse_yaml_mapping
from hpcstab.errors import ConfigError
from tests.conftest import REPOSITORY

SOURCE = (REPOSITORY / "configs" / "swae3d.yaml").read_text()


def load(tmp_path: Path, text: str) -> Any:
    (tmp_path / "configs").mkdir(exist_ok=True)
    (tmp_path / "configs" / "mine.yaml").write_text(text)
    return load_experiment("mine", tmp_path)


def changed(change: Any) -> str:
    values = yaml.safe_load(SOURCE)
    change(values)
    return yaml.safe_dump(values, sort_keys=False)


def test_numbers_booleans_and_words() -> None:
    assert parse_yaml_value("1e-3", "test") == 0.001
    assert parse_yaml_value("1.", "test") == 1.0
    assert parse_yaml_value("-2", "test") == -2
    assert parse_yaml_value("off", "test") == "off"
    assert parse_yaml_value("true", "test") is True
    assert parse_yaml_value("1:30", "test") == "1:30"
    assert parse_yaml_value("010", "test") == "010"  # neither octal nor decimal: a word, refused where a number is due
    assert parse_yaml_value("2024-01-01", "test") == "2024-01-01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must be a mapping of keys to values, got list"),
        ("", "must be a mapping of keys to values, got NoneType"),
        ("just words", "must be a mapping"),
        ("a: [1", "line 1"),
        ("model: swae3d\nmodel: swae3d\n", "line 2: key 'model' stands here twice"),
        ("1: x\n", "is not a name"),
        ("model: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
    ],
)
def test_files_that_are_no_experiment(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, text)
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(fixis={}), "unknown key 'fixis', did you mean 'fixes'"),
        (lambda v: v.pop("compare"), "key 'compare' is missing"),
        (lambda v: v["base"]["optimizer"].update(lrr=1), r"unknown key 'base.optimizer.lrr', did you mean 'lr'"),
        (lambda v: v["base"]["optimizer"].pop("lr"), "key 'base.optimizer.lr' is missing"),
        (lambda v: v["base"]["data"].update(batch_size="32"), r"'base.data.batch_size': got '32' \(str\)"),
        (lambda v: v["fixes"]["clip"].update(kind="magic"), "fixes.clip.kind"),
        (lambda v: v["fixes"]["clip"].pop("why"), "fixes.clip.why"),
        (lambda v: v["fixes"]["clip"].update(set={"stability.clip": 1.0}), "fix 'clip'.*unknown key 'stability.clip'"),
        (lambda v: v["fixes"]["clip"].update(set={"stability.clip_grad_norm": "x"}), "clip_grad_norm"),
        (lambda v: v["fixes"].update({"Big-Fix": v["fixes"]["clip"]}), "fix name 'Big-Fix'"),
        (lambda v: v["variants"]["after"].append("clip"), "a fix stands there twice"),
        (lambda v: v["variants"]["after"].append("clop"), "unknown fix 'clop', did you mean 'clip'"),
        (lambda v: v["variants"]["cured"].append("repeated"), "is a flaw"),
        (lambda v: v["scales"]["quick"].update({"optimizer.lr": 1.0}), "which fix 'lower_lr' sets too"),
        (lambda v: v["scales"]["quick"].update({"optimizer": {}}), "which fix 'lower_lr' sets too"),
        (lambda v: v.update(scales={}), "names no scale"),
        (lambda v: v["claims"][0].update(variant="nosuch"), "unknown variant 'nosuch'"),
        (lambda v: v["claims"][0].update(scales=["huge"]), "unknown scale 'huge'"),
        (lambda v: v["claims"][0].update(below_variant="before"), "exactly one of the two"),
        (
            lambda v: v["compare"].update(training_only=["function"]),
            "data has no key 'function', did you mean 'functions'",
        ),
        (lambda v: v.update(failure=[{"column": "loss"}]), "'above', 'below' or both"),
        (lambda v: v.update(model="nosuch"), "no model 'nosuch'"),
        (lambda v: v.update(model="nosuch.module:Task"), "cannot be imported"),
        (lambda v: v.update(model="nofile.py:Task"), "neither|not found"),
    ],
)
def test_mistakes_in_an_experiment(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path, changed(change))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_configs_folder_comes_before_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "swae3d.yaml").write_text(changed(lambda v: v.update(about="mine")))
    assert load_experiment("swae3d", tmp_path).file.about == "mine"
    monkeypatch.setenv("HPCSTAB_CONFIGS", str(tmp_path))
    assert load_experiment("swae3d").file.about == "mine"
    assert model_names() == model_names(tmp_path)


def test_a_folder_without_configs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither configs/ nor jobs/"):
        load_experiment("swae3d", tmp_path)


def test_a_users_own_model_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(
        "from hpcstab.models.swae3d import config\n\n\nclass Task:\n    Config = config.Config\n"
    )
    text = changed(lambda v: v.update(model=f"{tmp_path}/my_task.py:Task"))
    assert load(tmp_path, text).file.model.endswith("my_task.py:Task")


def test_what_a_reader_changes_is_not_what_the_next_one_reads() -> None:
    text = "network: {sizes: [1, 2]}"
    parse_yaml_mapping(text, "first")["network"]["sizes"].append(3)
    assert parse_yaml_mapping(text, "second") == {"network": {"sizes": [1, 2]}}


def test_a_text_that_is_wrong_twice_is_named_by_each_of_its_files() -> None:
    for origin in ("first.yaml", "second.yaml"):
        with pytest.raises(ConfigError, match=f"{origin}, line 2: key 'a' stands here twice"):
            parse_yaml_mapping("a: 1\na: 2", origin)
