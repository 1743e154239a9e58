"""The programs that a lab needs, from Debian's packages."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from settings import LabError

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin"
_PACKAGE_OF = {
    "munged": "munge",
    "mungekey": "munge",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
}
_PACKAGE_OF_ACCOUNTING = {
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",  # mariadb-install-db calls it
}
_MYSQL_PLUGIN = ("slurm-wlm/accounting_storage_mysql.so", "slurm-wlm-mysql-plugin")
_POLICY = Path("/usr/sbin/policy-rc.d")
_APT_S = 600


def program(name: str) -> str:
    """Path of a program; daemons lie in folders that are not on everybody's PATH.

    Raises:
        LabError: there is none.
    """
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise LabError(f"program {name} is not installed")
    return found


def missing_packages(accounting: bool) -> list[str]:
    """Debian packages of the programs that are not here, sorted."""
    wanted = _PACKAGE_OF | (_PACKAGE_OF_ACCOUNTING if accounting else {})
    missing = {package for name, package in wanted.items() if shutil.which(name, path=_PATH) is None}
    plugin, package = _MYSQL_PLUGIN
    if accounting and not any(Path("/usr/lib").glob(f"*/{plugin}")):
        missing.add(package)
    return sorted(missing)


def install_packages(accounting: bool) -> None:
    """Install what is missing, and say so.

    Raises:
        LabError: there is no apt-get, or it failed.
    """
    missing = missing_packages(accounting)
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise LabError(f"missing {' '.join(missing)}, and there is no apt-get to install them (Debian packages)")
    print(f"lab: installing {' '.join(missing)} with apt-get", flush=True)
    with _no_services_started():
        _apt_get("update")
        _apt_get("install", "--yes", "--no-install-recommends", *missing)
    still_missing = missing_packages(accounting)
    if still_missing:
        raise LabError(
            f"apt-get installed {' '.join(missing)}, but the programs of {' '.join(still_missing)} are not here"
        )


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PATH": _PATH}
    command = ["apt-get", "--quiet", *arguments]
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_APT_S, check=False)
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(command)}` did not end in {_APT_S} s") from None
    if result.returncode:
        words = " ".join((result.stderr.strip() or result.stdout.strip()).splitlines()[-2:])
        raise LabError(f"`{' '.join(command)}` failed: {words}")


@contextmanager
def _no_services_started() -> Iterator[None]:
    """Keep the packages from starting daemons of their own; a machine's own policy is left alone."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
