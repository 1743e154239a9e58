"""A bundle there and back: what is in it, what is not, whose names, and an archive that is not to be trusted."""

from __future__ import annotations

import getpass
import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.errors import RunError
from hpcstab.explain import archive
from hpcstab.explain.archive import MANIFEST, Entry, unpack_archive, write_archive
from hpcstab.explain.bundle import write_bundle
from hpcstab.explain.bundled import story_of_bundle
from hpcstab.explain.look import Asking, facts_of
from hpcstab.explain.names import Replacer
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.text import story_text
from hpcstab.rundir import RunDir
from tests.explain.test_ends import on_slurm

FILES_ALONE = Asking(replays=False, scans=False)


def bundle_of(run: RunDir, path: Path, **options: object) -> Path:
    facts = facts_of(run, FILES_ALONE)
    write_bundle(path, facts, story_of_run(facts), **options)  # type: ignore[arg-type]
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.mark.parametrize("name", ["run.zip", "run.tar.gz"])
def test_the_story_is_the_same_on_the_other_side(diverged: RunDir, tmp_path: Path, name: str) -> None:
    facts = facts_of(diverged, FILES_ALONE)
    sent = story_of_run(facts)
    write_bundle(tmp_path / name, facts, sent)
    received = story_of_bundle(tmp_path / name, FILES_ALONE)
    assert received.causes == sent.causes
    assert received.commands == sent.commands
    assert received.exit_code == sent.exit_code
    assert [s for s in received.sections if s.label in ("saved", "learning", "cost")] == [
        s for s in sent.sections if s.label in ("saved", "learning", "cost")
    ]
    assert "what follows is as of then" in story_text(received)


def test_what_is_in_it_and_what_is_not(diverged: RunDir, tmp_path: Path) -> None:
    inside = contents(bundle_of(diverged, tmp_path / "run.zip"))
    names = {name.rpartition(f"{diverged.run_id}/")[2] for name in inside}
    assert {
        "why.txt", "why.json", MANIFEST, "run.json", "config.yaml", "task.json", "status.json", "metrics.csv",
        "evals.csv", "events.jsonl", "probes.csv", "attempts/001.json", "checkpoints/step_00000003/manifest.json",
        "capsules/step_00000001/state.pt",
    } <= names  # fmt: skip
    assert "checkpoints/step_00000003/state.pt" not in names
    left_out = json.loads(inside[MANIFEST])["left_out"]
    assert [(Path(entry["name"]).name, entry["reason"]) for entry in left_out] == [
        ("state.pt", "tensors of a checkpoint")
    ]


def test_what_is_too_large_is_left_out_and_said(diverged: RunDir, tmp_path: Path) -> None:
    inside = contents(bundle_of(diverged, tmp_path / "run.zip", max_bytes=1000))
    left_out = {
        entry["name"].rpartition(f"{diverged.run_id}/")[2] for entry in json.loads(inside[MANIFEST])["left_out"]
    }
    assert {"run.json", "capsules/step_00000001"} <= left_out
    assert not any(name.endswith("run.json") or "capsules" in name for name in inside)


def test_names_are_replaced_unless_they_are_to_be_kept(
    diverged: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "an-environment-variable")
    user = getpass.getuser()
    (diverged.path / "logs").mkdir(exist_ok=True)
    diverged.log(1).write_text(
        f"on gpua012.cluster.example: /scratch/{user}/data and /home/ada/x.py\nWANDB_API_KEY=0123456789abcdef\n"
    )
    replaced = b"".join(contents(bundle_of(diverged, tmp_path / "replaced.zip")).values())
    for name in (b"gpua012", b"ada/", b"0123456789abcdef", b"an-environment-variable", f"scratch/{user}/".encode()):
        assert name not in replaced, name
    assert b"on host1: /scratch/user/data and /home/user/x.py" in replaced
    kept = b"".join(contents(bundle_of(diverged, tmp_path / "kept.zip", keep_names=True)).values())
    assert b"gpua012.cluster.example" in kept
    assert b"an-environment-variable" not in kept


def test_a_capsule_that_names_somebody_stays_here(diverged: RunDir, tmp_path: Path) -> None:
    """Its manifest vouches for every byte of it, so that no name can be replaced in it."""
    manifest = diverged.capsule(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"swae3d"', '"/home/ada/mine.py:Task"'))
    inside = contents(bundle_of(diverged, tmp_path / "run.zip"))
    assert not any("capsules" in name for name in inside)
    assert any("--keep-names" in entry["reason"] for entry in json.loads(inside[MANIFEST])["left_out"])
    assert any("capsules" in name for name in contents(bundle_of(diverged, tmp_path / "kept.zip", keep_names=True)))


def test_keys_are_no_names() -> None:
    replacer = Replacer(hosts=["loss", "n1"], users=["step"])
    event = {"step": 1, "data": {"loss": None, "node": "n1", "path": "/data/step/x"}}
    assert replacer.value(event) == {"step": 1, "data": {"loss": None, "node": "host2", "path": "/data/user/x"}}


def test_of_a_campaign_only_this_runs_job_goes(tmp_path: Path) -> None:
    run = on_slurm(tmp_path / "runs", "TIMEOUT")
    path = bundle_of(run, tmp_path / "run.zip")
    story = story_of_bundle(path, FILES_ALONE)
    assert story.causes[0].name == "time_limit"
    ledger = json.loads(contents(path)["runs/.submissions/swae3d_20261122_120000.json"])
    assert [job["run_id"] for job in ledger["jobs"]] == [run.run_id]


def test_a_name_that_is_taken_or_no_archive_is_refused(diverged: RunDir, tmp_path: Path) -> None:
    (tmp_path / "run.zip").write_bytes(b"mine")
    for name, words in (("run.zip", "is there already"), ("run.rar", "the name ends with")):
        with pytest.raises(RunError, match=words) as caught:
            bundle_of(diverged, tmp_path / name)
        assert caught.value.exit_code == 2
    assert (tmp_path / "run.zip").read_bytes() == b"mine"
    assert not list(tmp_path.glob(".*.aside"))


def zip_of(path: Path, name: str, content: bytes, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, content)
    return path


def tar_of(path: Path, member: tarfile.TarInfo, content: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as file:
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return path


def tar_link(path: Path) -> Path:
    member = tarfile.TarInfo("link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return tar_of(path, member)


HOSTILE: dict[str, Callable[[Path], Path]] = {
    "a zip that climbs out": lambda folder: zip_of(folder / "x.zip", "../outside", b"x"),
    "a zip with an absolute name": lambda folder: zip_of(folder / "x.zip", f"{folder}/outside", b"x"),
    "a zip with a backslash": lambda folder: zip_of(folder / "x.zip", "runs\\..\\..\\outside", b"x"),
    "a zip with a link": lambda folder: zip_of(folder / "x.zip", "link", b"/etc/passwd", stat.S_IFLNK | 0o777),
    "a tar that climbs out": lambda folder: tar_of(folder / "x.tar.gz", tarfile.TarInfo("a/../../outside"), b"x"),
    "a tar with a link": lambda folder: tar_link(folder / "x.tar.gz"),
    "no manifest": lambda folder: zip_of(folder / "x.zip", "why.txt", b"x"),
    "no archive": lambda folder: folder / "x.zip",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_leaves_the_folder_that_it_is_unpacked_to(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 and no more")
    path = HOSTILE[name](tmp_path)
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(RunError):
        unpack_archive(path, into)
    outside = {each for each in tmp_path.rglob("*") if into not in (each, *each.parents)}
    assert {each.name for each in outside} <= {"deep", "x.zip", "x.tar.gz"}
    assert not any(each.is_symlink() for each in into.rglob("*"))


def test_an_archive_that_unpacks_to_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(5_000_000))
    into = tmp_path / "into"
    into.mkdir()
    with pytest.raises(RunError, match="unpacks to more than"):
        unpack_archive(tmp_path / "bomb.zip", into)
    assert (into / "zeros").stat().st_size <= 1_000_000


@pytest.mark.parametrize("what", ["changed", "added", "removed"])
def test_a_bundle_that_was_altered_is_refused(tmp_path: Path, what: str) -> None:
    entries = [Entry("why.txt", b"the truth"), Entry("why.json", b"{}")]
    write_archive(tmp_path / "first.zip", entries, {"hpcstab_bundle": 1})
    inside = contents(tmp_path / "first.zip")
    changed = {"changed": {"why.txt": b"a lie"}, "added": {"more.txt": b""}, "removed": {}}[what]
    with zipfile.ZipFile(tmp_path / "second.zip", "w") as file:
        for name, content in {**inside, **changed}.items():
            if (what, name) != ("removed", "why.txt"):
                file.writestr(name, content)
    with pytest.raises(RunError, match="was altered"):
        unpack_archive(tmp_path / "second.zip", tmp_path / "into")


def test_code_that_a_bundle_names_is_not_run(diverged: RunDir, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    manifest = diverged.capsule(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"swae3d"', f'"{mine}:Task"'))
    path = bundle_of(diverged, tmp_path / "run.zip", keep_names=True)
    story = story_of_bundle(path, Asking(scans=False))
    assert not (tmp_path / "ran").exists()
    assert "its task is a file of the sender's" in story_text(story)
