"""What a run is: the folder, ``run.json`` and ``config.yaml``, written once before the first attempt.

``run.json`` holds what is needed to know the run again anywhere: which fixes and why, what was declared
to decide between runs, and which code made it, with the diff of a dirty tree.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from hpcstab.config import Experiment, ResolvedRun
from hpcstab.metrics import SCHEMA_VERSION
from hpcstab.rundir import RunDir, create_run_dir, write_json, write_text

_PACKAGE = Path(__file__).resolve().parent
_RECORDED_PACKAGES = ("hpcstab", "torch", "numpy", "submitit", "pandas", "pydantic")
_MAX_DIFF_CHARS = 1_000_000


def create_run(
    root: Path,
    experiment: Experiment,
    resolved: ResolvedRun,
    seed: int,
    campaign: str | None = None,
    parent: Mapping[str, Any] | None = None,
) -> RunDir:
    """A new run folder with its identity and config.

    Args:
        campaign: None for ``train``.
        parent: the run that it goes on from (see :func:`branch_text` for its keys); None where it begins by itself.
    """
    run = create_run_dir(root, resolved.model, resolved.variant.name, seed, resolved.signature)
    try:
        write_text(run.config_yaml, _config_text(experiment, resolved))
        write_json(run.run_json, _identity(run, experiment, resolved, seed, campaign, parent))
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)  # a folder without its identity is no run
        raise
    return run


def branch_text(parent: Mapping[str, Any]) -> str:
    """Where a rerun begins, in words: it keeps runs apart that did not begin alike.

    ``parent`` holds run_id and path of the parent, checkpoint (its name), step, update and sha256 of what was loaded,
    repaired (lines, null where nothing was), weights_only, added (fixes), overrides, fresh (parts that start anew).
    """
    if parent["weights_only"]:
        return f"weights of {parent['checkpoint']}" + (", repaired" if parent["repaired"] else "")
    return f"rerun from step {parent['step']}" + (", repaired" if parent["repaired"] else "")


def _identity(
    run: RunDir,
    experiment: Experiment,
    resolved: ResolvedRun,
    seed: int,
    campaign: str | None,
    parent: Mapping[str, Any] | None,
) -> dict[str, Any]:
    file = experiment.file
    # without defaults: a key that a later version adds must not set its runs apart from those before
    compare = {**file.compare.model_dump(mode="json", exclude_defaults=True), "horizon_steps": resolved.horizon_steps}
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run.run_id,
        "campaign": campaign,
        "model": resolved.model,
        "variant": resolved.variant.name,
        "label": resolved.label if parent is None else resolved.label_from(branch_text(parent)),
        "fixes": [{"name": fix, **file.fixes[fix].model_dump(mode="json")} for fix in resolved.variant.fixes],
        "overrides": dict(resolved.overrides),
        "seed": seed,
        "scale": resolved.scale,
        "signature": resolved.signature,
        "compare": compare,
        "failure": [condition.model_dump(mode="json") for condition in file.failure],
        "claims": [claim.model_dump(mode="json") for claim in file.claims],
        "parent": None if parent is None else dict(parent),
        **code_identity(),
    }


def _config_text(experiment: Experiment, resolved: ResolvedRun) -> str:
    values = {"model": experiment.file.model, **resolved.config.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)


@functools.cache
def code_identity() -> dict[str, Any]:
    """Digest of the package's sources, commit and diff of its checkout, versions of what it runs on."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    in_checkout = (_PACKAGE.parent / ".git").exists()
    return {
        "code_digest": digest.hexdigest(),
        "commit": _git("rev-parse", "HEAD").strip() or None if in_checkout else None,
        "dirty_diff": _git("diff", "HEAD")[:_MAX_DIFF_CHARS] if in_checkout else "",
        "packages": {name: _version(name) for name in _RECORDED_PACKAGES},
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE.parent), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
