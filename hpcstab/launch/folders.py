"""The run folders of a submission: all of them whole, or none."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from hpcstab.campaign import PlannedRun
from hpcstab.config import Experiment, load_experiment
from hpcstab.identity import create_run
from hpcstab.rundir import SUBMISSIONS, RunDir, unwritable_root


class RunFolders:
    """Makes the folders of ``planned`` under ``root``, and can take back what it has made."""

    def __init__(self, root: Path, planned: list[PlannedRun]) -> None:
        self._root = root
        self._planned = planned
        self._made: list[RunDir] = []
        variants = [root / run.resolved.model / run.resolved.variant.name for run in planned]
        self._new_parents = _missing([root / SUBMISSIONS, *variants])

    def create(self, campaign: str, staging: Path, configs: Path | None) -> list[str]:
        """Run ids, in order; each folder is written whole in ``staging``, where no reader looks, and then moved.

        Raises:
            RunError: the root cannot be written.
        """
        experiments: dict[str, Experiment] = {}
        for run in self._planned:
            model = run.resolved.model
            if run.branch is None and model not in experiments:
                experiments[model] = load_experiment(model, configs)
            while True:
                staged = _create(staging, run, experiments, campaign)
                if self._move(staged):
                    break
                time.sleep(1.0)  # somebody made the same run in this second: the next one is free
        shutil.rmtree(staging, ignore_errors=True)
        return [run.run_id for run in self._made]

    def take_back(self) -> None:
        """Remove the runs, and the folders above them that are new and empty."""
        for run in self._made:
            shutil.rmtree(run.path, ignore_errors=True)
        for folder in self._new_parents:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                folder.rmdir()

    def _move(self, staged: RunDir) -> bool:
        """Move a run to its place; False where the place is taken, and then the staged one is removed."""
        run = RunDir(self._root / staged.run_id)
        try:
            run.path.parent.mkdir(parents=True, exist_ok=True)
            staged.path.rename(run.path)
        except OSError as error:
            if not run.path.exists():
                raise unwritable_root(self._root, error) from None
            shutil.rmtree(staged.path)
            return False
        self._made.append(run)
        return True


def _create(staging: Path, run: PlannedRun, experiments: Mapping[str, Experiment], campaign: str) -> RunDir:
    if run.branch is None:
        return create_run(staging, experiments[run.resolved.model], run.resolved, run.seed, campaign)
    staged = create_run(staging, run.branch.experiment, run.resolved, run.seed, campaign, run.branch.parent)
    run.branch.write_start(staged)
    return staged


def _missing(folders: list[Path]) -> list[Path]:
    """Those of the folders and their parents that are not there yet, deepest first."""
    found = {path for folder in folders for path in (folder, *folder.parents) if not path.exists()}
    return sorted(found, key=lambda path: len(path.parts), reverse=True)
