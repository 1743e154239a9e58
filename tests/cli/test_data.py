"""`hpcstab data fetch, list, check` on stand-in archives, and what refuses a run whose data are not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpcstab.cli.app import app
from hpcstab.data.folders import look_into
from hpcstab.data.sources import SOURCES
from hpcstab.errors import DataError
from tests.data.stand_ins import fetched, pin, swae3d_files

REAL = ("--scale", "tiny", "--set", "data.source=real")


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path / "cache"))


def hpcstab(*arguments: str) -> tuple[int, str]:
    """Exit code and stdout, in this process, where the stand-ins are pinned; a HpcstabError is raised as it is."""
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    return done.exit_code, done.stdout


def test_fetch_prints_the_licence_and_does_nothing_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package, contents in swae3d_files().items():
        pin(monkeypatch, tmp_path, package, contents)
    code, first = hpcstab("data", "fetch", "swae3d", "--from", str(tmp_path))
    assert code == 0
    assert "griddataformats 1.2.0: two 3D density maps" in first
    assert "licence: UK Open Government Licence" in first
    assert "2 files, verified, in " in first
    assert hpcstab("data", "fetch", "swae3d")[1].count("is there already, as pinned") == 2


def test_list_says_what_is_here_absent_and_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package, contents in swae3d_files().items():
        fetched(monkeypatch, tmp_path, package, contents)
    (tmp_path / "cache" / "iris-sample-data-2.5.2" / "colpex.pp").write_bytes(b"damaged")
    rows = [line.split("\t") for line in hpcstab("data", "list")[1].splitlines()]
    here = {row[0]: row[3] for row in rows[1:-1]}
    assert set(here) == {source.release for source in SOURCES.values()}
    assert (here["griddataformats 1.2.0"], here["iris-sample-data 2.5.2"]) == ("yes", "damaged")
    assert here["sporco 0.2.2.post1"] == "no"
    assert all(row[5] for row in rows[1:-1])  # a licence each
    listed = json.loads(hpcstab("data", "list", "swae3d", "--json")[1])
    assert [(entry["package"], entry["extra"]) for entry in listed["sources"]] == [
        ("griddataformats", False),
        ("iris-sample-data", False),
        ("ferret-datasets", True),
    ]


def test_check_looks_at_fetched_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package, contents in swae3d_files().items():
        fetched(monkeypatch, tmp_path, package, contents)
    code, text = hpcstab("data", "check", "swae3d", *REAL)
    assert code == 0
    assert "griddataformats 1.2.0" in text
    assert "nothing found" in text


def test_without_fetched_data_nothing_is_created_or_queued(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for command in (["train", "swae3d@before"], ["submit", "swae3d", "--cluster", "local"]):
        with pytest.raises(
            DataError, match=r"not in .*: .*, iris-sample-data 2.5.2; run `hpcstab data fetch swae3d`"
        ) as caught:
            hpcstab(*command, *REAL, "--root", str(root))
        assert caught.value.exit_code == 3
    assert not root.exists()
    with pytest.raises(DataError, match="`hpcstab data fetch ferret-datasets`"):
        hpcstab("train", "swae3d@before", *REAL, "--set", "data.fields=[wind_zonal]", "--root", str(root))
    plan = hpcstab("submit", "swae3d", "--cluster", "local", "--dry-run", *REAL, "--root", str(root))
    assert (plan[0], plan[1].count("data.source=real")) == (0, 9)


@pytest.mark.parametrize(
    ("model", "holds_nothing"),
    [
        ("vae2d", "holds no image"),
        ("wavessm", "holds no image"),
        ("liquidreg", "/imagesTr' cannot be read"),
        ("xray2ctpa", "holds no pair"),
    ],
)
def test_a_folder_with_nothing_to_read_is_refused_before_anything_is_created(
    tmp_path: Path, model: str, holds_nothing: str
) -> None:
    root, folder = tmp_path / "runs", tmp_path / "mine"
    mine = ("--scale", "tiny", "--set", "data.source=folder", "--set", f"data.folder={folder}", "--root", str(root))
    for message in ("cannot be read: No such file", holds_nothing):
        for command in (["train", f"{model}@before"], ["submit", model, "--cluster", "local"]):
            with pytest.raises(DataError, match=message) as caught:
                hpcstab(*command, *mine)
            assert caught.value.exit_code == 3
        folder.mkdir(exist_ok=True)
    assert not root.exists()


def test_a_folder_of_empty_folders_holds_no_subject(tmp_path: Path) -> None:
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    with pytest.raises(DataError, match="holds no subject; read are imagesTr/NAME"):
        look_into(tmp_path, "subjects")


def test_the_check_computes_with_one_thread_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads on a busy machine took minutes for what one does in seconds."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert hpcstab("data", "check", "swae3d", "--scale", "tiny")[0] == 0
    assert os.environ["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    hpcstab("data", "check", "swae3d", "--scale", "tiny")
    assert os.environ["OMP_NUM_THREADS"] == "2"
