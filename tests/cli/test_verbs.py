"""The command as a user types it: tables, JSON, one-line errors, exit codes, start-up without torch."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MODELS, REPOSITORY
from tests.golden.make import GOLDEN


def hpcstab(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcstab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def table(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines() if "\t" in line]


def test_help_lists_the_verbs() -> None:
    done = hpcstab("--help")
    assert done.returncode == 0
    verbs = "list show data train submit status logs cancel clusters rerun report doctor replay why runs"
    for verb in verbs.split():
        assert f" {verb} " in done.stdout
    assert hpcstab().stdout == done.stdout


def test_list_names_every_model_with_fixes_and_why() -> None:
    done = hpcstab("list")
    for model in MODELS:
        assert f"{model}: " in done.stdout
    rows = table(done.stdout)
    assert ["clip", "limit", "after"] in [row[:3] for row in rows]  # of swae3d
    assert all(kind and why for _, kind, _, why in rows)
    assert set(json.loads(hpcstab("list", "--json").stdout)) == set(MODELS)


def test_show_diff_is_the_table_of_the_write_up() -> None:
    done = hpcstab("show", "swae3d", "--diff")
    rows = {row[0]: row[1:] for row in table(done.stdout)}
    assert rows["parameter"] == ["before", "after", "cured", "fix", "why"]
    assert rows["optimizer.lr"][:4] == ["0.001", "0.0001", "0.001", "lower_lr (limit)"]
    assert rows["network.normalization"][:3] == ["gdn", "batchnorm", "gdn_bounded"]
    assert rows["stability.clip_grad_norm"][:2] == ["null", "1"]
    assert "optimizer.eps" not in rows  # what does not differ is not shown


def test_show_says_which_of_two_fixes_on_one_key_wins() -> None:
    done = hpcstab("show", "swae3d@before+batchnorm+gdn_bounded")
    assert "fixes 'batchnorm' and 'gdn_bounded' both set network.normalization" in done.stdout
    shown = json.loads(
        hpcstab("show", "swae3d@after", "--scale", "tiny", "--set", "optimizer.lr=1e-2", "--json").stdout
    )
    assert shown["label"] == "after{optimizer.lr=0.01}"
    assert shown["config"]["optimizer"]["lr"] == 0.01


def test_data_check_finds_the_leak_of_the_write_up() -> None:
    leaky = hpcstab("data", "check", "swae3d@before+repeated", "--scale", "quick", "--json")
    assert leaky.returncode == 1
    found = json.loads(leaky.stdout)
    assert {finding["kind"] for finding in found["findings"]} == {"duplicate"}
    assert found["facts"]["num_leaked_volumes"] == found["facts"]["num_validation_volumes"]
    honest = hpcstab("data", "check", "swae3d", "--scale", "quick")
    assert honest.returncode == 0
    assert "nothing found" in honest.stdout


def test_train_runs_here_and_reports_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    done = hpcstab("train", "swae3d@before+first_batch_init", "--seed", "3", "--scale", "tiny", "--root", str(root))
    assert done.returncode == 0, done.stderr  # divergence is a result
    assert "diverged" in done.stdout
    (run,) = root.glob("swae3d/before+first_batch_init/*_s3_*/")
    assert json.loads((run / "status.json").read_text())["first_nonfinite_step"] == 0
    assert json.loads((run / "attempts" / "001.json").read_text())["reason"] == "diverged"
    assert (run / "logs" / "001.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["show", "nosuch"], 2, "unknown model 'nosuch'. There are: liquidreg, swae3d"),
        (["show", "swae3"], 2, "did you mean 'swae3d'"),
        (["show", "../swae3d"], 2, "unknown model"),
        (["show", "swae3d@befor"], 2, "did you mean 'before'"),
        (["show", "swae3d@before+clipp"], 2, "did you mean 'clip'"),
        (["show", "swae3d@before", "--set", "optimizer.lrr=1"], 2, "did you mean 'optimizer.lr'"),
        (["show", "swae3d@before", "--set", "optimizer.lr=x"], 2, "valid number"),
        (["show", "swae3d@before", "--set", "optimizer.lr=1\nrm"], 2, "control character"),
        (["show", "swae3d", "--scale", "huge"], 2, "unknown scale 'huge'"),
        (["show", "swae3d", "--configs", "/nowhere"], 2, "neither configs/ nor jobs/"),
        (["train", "swae3d"], 2, "train wants MODEL@VARIANT"),
        (["train", "swae3d@before", "--seed", "-1"], 2, "--seed"),
        (["train", "swae3d@before", "--root", "/dev/null/runs"], 2, "run root '/dev/null/runs' cannot be written"),
        (["train", "swae3d@before", "--root", "/proc/runs"], 2, "cannot be written"),
        (["train", "swae3d@before", "--set", "data.batch_size=100000", "--scale", "tiny"], 2, "training items"),
        (["train", "swae3d@before", "--set", "network.block_size=4", "--scale", "tiny"], 2, "block_size"),
        (["data", "check", "swae3d", "--set", "data.resolution=41"], 3, "multiple of the block size"),
        (["report", "--root", "/nowhere"], 3, "no runs"),
    ],
)
def test_wrong_requests_are_one_line_and_leave_nothing(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    if "--root" not in arguments and arguments[0] in ("train", "report"):
        arguments = [*arguments, "--root", str(tmp_path / "runs")]
    done = hpcstab(*arguments)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith("hpcstab: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_our_own_bug_exits_70_with_its_traceback_in_a_file(tmp_path: Path) -> None:
    code = (
        "import hpcstab.config, hpcstab.cli.app, sys\n"
        "hpcstab.config.model_names = lambda configs=None: 1 / 0\n"
        "sys.argv = ['hpcstab', 'list']\n"
        "hpcstab.cli.app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 70
    path = Path(done.stderr.strip().rsplit(" ", 1)[1])
    assert "ZeroDivisionError" in path.read_text()
    path.unlink()


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m hpcstab list | head -1", shell=True, capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.stderr == ""


def test_the_wheel_carries_configs_and_clusters(tmp_path: Path) -> None:
    """Installed from a wheel, away from any checkout, the command finds its models and clusters."""
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*build, str(REPOSITORY)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "-q",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "import hpcstab, hpcstab.config as config\n"
        "print(hpcstab.__file__, config.load_experiment('swae3d').path, *config.yaml_names('jobs/clusters'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    imported, path, *clusters = done.stdout.split()
    assert str(tmp_path / "site") in imported
    assert path == str(tmp_path / "site" / "hpcstab" / "shipped" / "configs" / "swae3d.yaml")
    assert {"local", "delta"} <= set(clusters)


def test_train_resumes_a_run_that_was_stopped_and_no_other(tmp_path: Path) -> None:
    root = str(tmp_path / "runs")
    settings = ["--set", "trainer.max_steps=150", "--set", "trainer.checkpoint_every={steps: 50}"]
    command = [sys.executable, "-m", "hpcstab", "train", "swae3d@cured", "--scale", "tiny", *settings, "--root", root]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    run = next(Path(root).glob("*/*/*/"))
    while not (run / "checkpoints" / "index.json").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 1  # stopped: the run is not over
    resumed = hpcstab("train", "--resume", run.name, "--root", root)
    assert resumed.returncode == 0, resumed.stderr
    assert "completed: 150 steps" in resumed.stdout
    assert [json.loads(path.read_text())["reason"] for path in sorted((run / "attempts").iterdir())] == [
        "SIGTERM",
        "completed",
    ]
    again = hpcstab("train", "--resume", run.name, "--root", root)
    assert (again.returncode, "is completed: there is nothing to resume" in again.stderr) == (2, True)


def test_why_and_runs_say_what_they_take(tmp_path: Path) -> None:
    assert hpcstab("runs", "--root", str(tmp_path)).stdout.startswith("no runs under")
    for arguments, code, words in (
        (("why", "nothing"), 2, "no run matches 'nothing'"),
        (("why", str(tmp_path)), 2, "neither a run (run.json) nor a checkpoint"),
        (("runs", "--prune", "metrics", "--all"), 2, "what can be removed is checkpoints"),
        (("runs", "--prune", "capsules"), 2, "--prune wants the runs by name, or --all"),
        (("runs", "--yes"), 2, "--all and --yes belong to --prune"),
    ):
        done = hpcstab(*arguments, "--root", str(tmp_path / "runs"))
        assert (done.returncode, done.stdout) == (code, "")
        assert words in done.stderr


def test_runs_asks_before_it_removes(tmp_path: Path) -> None:
    """Where nobody can answer it removes nothing; with --yes it removes what it has shown."""
    root = tmp_path / "runs"
    (model, variant, name), source = ("swae3d", "after", "20260101_000000_s0_0123abcd"), GOLDEN
    shutil.copytree(source, root / model / variant / name)
    capsule = root / model / variant / name / "capsules" / "step_00000003"
    capsule.mkdir(parents=True)
    (capsule / "state.pt").write_bytes(bytes(1000))
    prune = ("runs", name, "--prune", "capsules", "--root", str(root))
    asked = hpcstab(*prune)
    assert (asked.returncode, capsule.is_dir()) == (3, True)
    assert "capsules step_00000003, 1.0 kB" in asked.stdout
    assert "say --yes" in asked.stderr
    done = hpcstab(*prune, "--yes", "--json")
    assert (done.returncode, capsule.is_dir()) == (0, False)
    assert json.loads(done.stdout)["num_bytes"] == 1000
    (row,) = json.loads(hpcstab("runs", "--json", "--root", str(root)).stdout)
    assert row["num_bytes"]["capsules"] == 0
