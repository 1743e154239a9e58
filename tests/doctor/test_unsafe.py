"""A pickle that would run code is named and never executed; classes that nobody knows here are no such thing."""

from __future__ import annotations

import argparse
import builtins
import dataclasses
import datetime
import functools
import operator
import os
import pickle
import runpy
import subprocess
from collections import Counter, defaultdict
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpcstab.doctor import diagnose, repair
from tests.doctor.making import saved


class Calls:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._what = (function, args)

    def __reduce__(self) -> Any:
        return self._what


class Colour(Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    lr: float
    momentum: float = 0.9


def touch_by(function_of: str, mark: Path) -> Calls:
    attacks: dict[str, Calls] = {
        "os.system": Calls(os.system, f"touch {mark}"),
        "subprocess": Calls(subprocess.check_output, ["touch", str(mark)]),
        "exec": Calls(builtins.exec, f"open({str(mark)!r}, 'w')"),
        "eval": Calls(builtins.eval, f"open({str(mark)!r}, 'w')"),
        "open": Calls(builtins.open, str(mark), "w"),
        "Path.touch": Calls(Path.touch, mark),
        "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
        "runpy": Calls(runpy.run_path, str(mark)),
        "methodcaller": Calls(operator.methodcaller("touch"), mark),
        "partial": Calls(functools.partial(os.system, f"touch {mark}")),
        "nested torch": Calls(torch.storage._load_from_bytes, b"anything"),
        "torch.load": Calls(torch.load, str(mark)),
        "numpy": Calls(np.load, str(mark)),
        "own function": Calls(touch_by, "os.system", mark),
    }
    return attacks[function_of]


ATTACKS = [
    "os.system", "subprocess", "exec", "eval", "open", "Path.touch", "getattr", "runpy", "methodcaller", "partial",
    "nested torch", "torch.load", "numpy", "own function",
]  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attack", ATTACKS)
def test_code_is_named_and_not_run(tmp_path: Path, attack: str, legacy: bool) -> None:
    mark = tmp_path / "it_ran"
    state = {"weight": torch.ones(3), "extra": touch_by(attack, mark)}
    path = saved(tmp_path, state, _use_new_zipfile_serialization=not legacy)
    diagnosis = diagnose(path)
    assert not mark.exists()
    assert (diagnosis.verdict, diagnosis.exit_code) == ("unsafe", 1)
    assert diagnosis.num_values == 3  # its tensors were scanned all the same
    repaired = repair(path)
    assert (repaired.out, repaired.exit_code) == (None, 1)
    assert not mark.exists()


def test_the_test_has_teeth(tmp_path: Path) -> None:
    """torch itself runs it where it is told to trust the file."""
    mark = tmp_path / "it_ran"
    torch.load(saved(tmp_path, {"extra": touch_by("os.system", mark)}), weights_only=False)
    assert mark.exists()


def test_the_functions_are_listed(tmp_path: Path) -> None:
    state = {"a": touch_by("os.system", tmp_path / "x"), "b": touch_by("exec", tmp_path / "x")}
    (finding,) = [finding for finding in diagnose(saved(tmp_path, state)).findings if finding.severity == "unsafe"]
    assert f"{os.system.__module__}.system, builtins.exec" in finding.text


@pytest.mark.parametrize("place", ["first", "last"])
def test_every_pickle_of_the_old_format_counts(tmp_path: Path, place: str) -> None:
    """It is a row of five pickles, and torch loads them all."""
    mark = tmp_path / "it_ran"
    whole = saved(tmp_path, {"weight": torch.ones(3)}, _use_new_zipfile_serialization=False).read_bytes()
    attack = pickle.dumps(touch_by("os.system", mark), 2)
    end = whole.index(b".") + 1  # of the first pickle
    if place == "first":
        (tmp_path / "x.pt").write_bytes(attack + whole)
    else:
        second = whole.index(b".", end) + 1
        (tmp_path / "x.pt").write_bytes(whole[:second] + attack)
    assert diagnose(tmp_path / "x.pt").verdict == "unsafe"
    assert not mark.exists()


def test_what_runs_before_a_damage_counts(tmp_path: Path) -> None:
    """pickle runs it before it meets the damage."""
    mark = tmp_path / "it_ran"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps([touch_by("os.system", mark), "more"], 2)[:-4])
    with pytest.raises(EOFError):
        pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert mark.exists()
    mark.unlink()
    assert diagnose(tmp_path / "x.pkl").verdict == "unsafe"
    assert not mark.exists()


def test_calls_of_calls(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    text = f"touch {mark}".encode()
    argument = b"X" + len(text).to_bytes(4, "little") + text
    # partial(os.system), which is only made, and then it is called
    attack = b"\x80\x02cfunctools\npartial\n(cos\nsystem\ntR(" + argument + b"tR."
    (tmp_path / "x.pkl").write_bytes(attack)
    pickle.loads(attack)
    assert mark.exists()
    mark.unlink()
    assert diagnose(tmp_path / "x.pkl").verdict == "unsafe"
    (tmp_path / "x.pkl").write_bytes(attack.replace(b"(" + argument + b"tR.", b"."))
    assert diagnose(tmp_path / "x.pkl").verdict == "unreadable"  # a plain pickle that calls nothing
    assert not mark.exists()


def test_a_plain_pickle(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(touch_by("os.system", mark)))
    (tmp_path / "good.pkl").write_bytes(pickle.dumps({"weight": [1.0, 2.0]}))
    assert diagnose(tmp_path / "bad.pkl").verdict == "unsafe"
    assert [finding.code for finding in diagnose(tmp_path / "good.pkl").findings] == ["plain_pickle"]
    assert not mark.exists()


def test_objects_of_classes_are_data(tmp_path: Path) -> None:
    """What hyper-parameters are made of: refused by weights_only, looked at without any of these classes."""
    state = {
        "weight": torch.tensor([1.0, torch.nan]),
        "args": argparse.Namespace(lr=np.float64(0.1), path=Path("x"), when=datetime.datetime(2026, 1, 1)),
        "settings": Settings(0.1),
        "colour": Colour.RED,
        "array": np.arange(3.0),
        "counts": Counter("aab"),
        "by_default": defaultdict(list, {"a": [torch.tensor([torch.inf, 1.0])]}),
        "partial": functools.partial(torch.optim.AdamW, lr=0.1),
        "function": torch.nn.functional.gelu,
        "device": torch.device("cpu"),
        "type": torch.bfloat16,
        "random": np.random.default_rng(0),
        "held": argparse.Namespace(inside=torch.tensor([torch.nan])),
    }
    path = saved(tmp_path, state)
    diagnosis = diagnose(path)
    assert diagnosis.verdict == "sick"
    assert [finding.name for finding in diagnosis.sick] == ["weight", "by_default.a.0", "held.inside"]
    (classes,) = [finding.text for finding in diagnosis.findings if finding.code == "unknown_classes"]
    assert "argparse.Namespace" in classes
    assert not [finding for finding in diagnosis.findings if finding.severity == "unsafe"]
