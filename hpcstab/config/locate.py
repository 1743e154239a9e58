"""Where configs are looked for, file by file.

In this order: ``--configs`` (a folder that holds ``configs/``, ``jobs/`` or both), ``HPCSTAB_CONFIGS``
(the same), the git root whose pyproject names hpcstab, the checkout this package was imported from,
the copy that travels in the wheel.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

from hpcstab.config.section import nearest
from hpcstab.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What a model, fix, variant, scale or cluster may be called: it reaches paths and batch scripts."""

_PACKAGE = Path(__file__).resolve().parents[1]


def config_roots(configs: Path | None = None) -> list[Path]:
    """Folders that may hold ``configs/`` and ``jobs/``, first match first."""
    roots = []
    for given, source in ((configs, "--configs"), (os.environ.get("HPCSTAB_CONFIGS"), "HPCSTAB_CONFIGS")):
        if given:
            root = Path(given)
            if not (root / "configs").is_dir() and not (root / "jobs").is_dir():
                raise ConfigError(f"{source}: '{root}' holds neither configs/ nor jobs/")
            roots.append(root)
    for checkout in (_enclosing_git_root(Path.cwd()), _PACKAGE.parent):
        if checkout is not None and checkout not in roots and _names_hpcstab(checkout / "pyproject.toml"):
            roots.append(checkout)
    return [*roots, _PACKAGE / "shipped"]


def find_yaml(folder: str, name: str, what: str, configs: Path | None = None) -> Path:
    """The file ``<root>/<folder>/<name>.yaml``; ``what`` is the word for it in errors."""
    if NAME.fullmatch(name):
        for root in config_roots(configs):
            path = root / folder / f"{name}.yaml"
            if path.is_file():
                return path
    names = yaml_names(folder, configs)
    raise ConfigError(f"unknown {what} {name!r}{nearest(name, names) or '.'} There are: {', '.join(names) or 'none'}")


def yaml_names(folder: str, configs: Path | None = None) -> list[str]:
    """All names for which :func:`find_yaml` finds a file, sorted."""
    found = {path.stem for root in config_roots(configs) for path in (root / folder).glob("*.yaml")}
    return sorted(name for name in found if NAME.fullmatch(name))


def _enclosing_git_root(start: Path) -> Path | None:
    return next((folder for folder in (start, *start.parents) if (folder / ".git").exists()), None)


def _names_hpcstab(pyproject: Path) -> bool:
    try:
        return bool(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["name"] == "hpcstab")
    except (OSError, KeyError, ValueError, TypeError):
        return False
