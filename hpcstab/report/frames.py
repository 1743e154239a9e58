"""CSV files of a run as data frames; what a killed writer left after the last newline is cut."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

NO_ROWS = pd.DataFrame(
    {column: [] for column in ("step", "attempt", "loss", "grad_norm", "loss_finite", "grad_finite", "outcome")}
)
NO_EVALS = pd.DataFrame({column: [] for column in ("step", "split", "weights", "num_failed_batches")})
_TEXTS = {"outcome", "split", "weights"}


def read_frame(path: Path, empty: pd.DataFrame) -> pd.DataFrame:
    """The complete rows of a file; an absent one, or one without a row, is ``empty``.

    Readers may rely on the columns of ``empty``; non-finite values stay what they are.

    Raises:
        ValueError: a row or a number in the middle of the file is garbage.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    frame = pd.read_csv(io.BytesIO(whole)) if whole else empty
    missing = [column for column in empty.columns if column not in frame.columns]
    if missing:
        raise ValueError(f"has no column '{missing[0]}'")
    if not len(frame):
        return empty
    garbage = [column for column in frame.columns if frame[column].dtype.kind not in "iufb" and column not in _TEXTS]
    if garbage:
        raise ValueError(f"column '{garbage[0]}' holds something that is no number")
    if frame["step"].isna().any():
        raise ValueError("a row has no step")
    return frame


def validation_rows(evals: pd.DataFrame) -> pd.DataFrame:
    """One row an evaluation: validation split, raw weights."""
    return _last_of_each_step(evals[(evals["split"] == "validation") & (evals["weights"] == "raw")])


def history(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a step: where a step was written twice (a resume), its last row in file order.

    A step that was held and never ran again, since the run ended, is not part of it.
    """
    last = _last_of_each_step(rows)
    return last[last["outcome"] != "held"].reset_index(drop=True)


def _last_of_each_step(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop_duplicates("step", keep="last").sort_values("step").reset_index(drop=True)
