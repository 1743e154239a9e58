"""The promise of the README, kept: one command from the YAML to the before/after/cured report."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_quick_campaign_of_swae3d_separates_before_after_and_cured(tmp_path: Path) -> None:
    """Over three seeds every ``before`` goes non-finite, no ``after`` and no ``cured`` does, and ``cured`` learns."""
    command = [sys.executable, "-m", "hpcstab", "submit", "swae3d", "--root", "runs", "--configs", str(REPOSITORY)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "reports" / "local").iterdir()
    assert f"report: {(folder / 'report.html').relative_to(tmp_path)}" in done.stdout
    assert (folder / "report.md").is_file()
    runs = pd.read_csv(folder / "runs.csv").set_index(["label", "seed"])
    assert sorted({label for label, _ in runs.index}) == ["after", "before", "cured"]
    assert len(runs) == 9

    before, after, cured = (runs.loc[label] for label in ("before", "after", "cured"))
    assert (before["state"] == "diverged").all()
    assert before["first_nonfinite_step"].between(0, 400).all()
    for finite in (after, cured):
        assert (finite["state"] == "completed").all()
        assert finite["first_nonfinite_step"].isna().all()
        assert (finite["steps"] >= 400).all()
    assert (cured["finite"] == "yes").all()
    assert (cured["learned"] == "yes").all()
    assert (cured["end_psnr"] >= cured["floor_mean_predictor"] + 0.3).all()  # the target of quick
    assert (cured["end_psnr"] == cured["best_psnr"]).all()  # still rising
