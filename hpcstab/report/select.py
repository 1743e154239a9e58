"""Which runs a report is about when nobody names them: the newest campaign, or all runs of a model."""

from __future__ import annotations

import re
from pathlib import Path

from hpcstab.errors import HpcstabError
from hpcstab.rundir import RunDir

_FOLDER_NAME = re.compile(r"\d{8}_\d{6}_s\d+_[0-9a-f]{8}")
_TIME_AT_END = re.compile(r"_(\d{8}_\d{6})$")


def runs_of_model(root: Path, model: str | None = None) -> list[RunDir]:
    """All run folders under ``root``, of one model or of all, with or without a readable run.json."""
    return [
        RunDir(path)
        for path in sorted(root.glob(f"{model or '[!.]*'}/*/*"))
        if _FOLDER_NAME.fullmatch(path.name) and path.is_dir()
    ]


def newest_campaign_runs(root: Path, model: str | None = None) -> tuple[str | None, list[RunDir]]:
    """(campaign id, its runs); (None, the runs without one) where no run belongs to a campaign.

    A folder that cannot say what it belongs to is kept where it is not older than the campaign: a
    report must not lose a run because it broke.
    """
    runs = runs_of_model(root, model)
    campaigns = {run: _campaign(run) for run in runs}
    newest = max((name for name in campaigns.values() if name), key=_began, default=None)
    if newest is None:
        return None, runs
    kept = [run for run, name in campaigns.items() if name == newest or (name is None and _may_belong(run, newest))]
    return newest, kept


def models_under(root: Path) -> list[str]:
    """Models that have a folder of runs under ``root``."""
    return sorted({run.path.parts[-3] for run in runs_of_model(root)})


def _campaign(run: RunDir) -> str | None:
    """The campaign of a run; empty for ``train``, None where run.json cannot tell."""
    try:
        return str(run.identity().get("campaign") or "")
    except HpcstabError:
        return None


def _may_belong(run: RunDir, campaign: str) -> bool:
    return run.path.name >= _began(campaign)


def _began(campaign: str) -> str:
    found = _TIME_AT_END.search(campaign)
    return found[1] if found else ""
