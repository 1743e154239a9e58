"""The figures of a section as PNG: how long each run stayed finite, its curves, and its pictures.

Every run is in every figure: one that died ends in a cross with its step, one without a record is named.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from hpcstab.report.curves import draw_metric, draw_steps, median_window
from hpcstab.report.lanes import draw_lanes
from hpcstab.report.record import LoadedRun
from hpcstab.report.sections import Section
from hpcstab.report.style import RC
from hpcstab.report.words import with_unit

DPI = 120
_LEVEL = 17.0
"""255 / 15: sixteen levels a channel."""
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURE_BYTES = 1_500_000


@dataclass(frozen=True)
class Picture:
    """One PNG of the report: its file name, what it shows, and for whom cannot see it the same in words."""

    name: str
    title: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Sample:
    """The last pictures of one run, or the reason why there are none."""

    caption: str
    pictures: tuple[Picture, ...]
    missing: str


def make_figures(section: Section) -> list[Picture]:
    """Lanes, loss, gradient norm and the primary metric, where there is something to draw."""
    name, metric = section.compare.primary, with_unit(section.primary)
    recorded = any(run.steps for run in section.runs)
    plans: list[tuple[str, str, Callable[[Section, Figure], None], bool]] = [
        ("finite", "How long each run stayed finite", draw_lanes, True),
        ("loss", _steps_title("Loss", section), lambda s, f: draw_steps(s, f, "loss", "loss"), recorded),
        (
            "grad_norm",
            _steps_title("Gradient norm before clipping", section),
            lambda s, f: draw_steps(s, f, "grad_norm", "gradient norm (L2)"),
            recorded,
        ),
        (
            name,
            f"{metric} on held-out data, every evaluation of every run",
            lambda s, f: draw_metric(s, f, metric),
            any(name in run.evals for run in section.runs),
        ),
    ]
    return [
        Picture(_file_name(section, what), title, f"{title}: {_in_words(section)}", _render(section, draw))
        for what, title, draw, wanted in plans
        if wanted
    ]


def _steps_title(what: str, section: Section) -> str:
    window = median_window(section.horizon)
    how = f"faint: every step; line: running median over {window} steps" if window > 1 else "every step"
    return f"{what} of every run ({how})"


def samples(section: Section) -> list[Sample]:
    """The last pictures of each variant's lowest seed, side by side."""
    return [_sample(group.label, group.runs[0], section) for group in section.groups]


def _sample(label: str, run: LoadedRun, section: Section) -> Sample:
    files = sorted(run.run.samples.glob("step_*.png"))
    step = files[-1].name.split("_")[1] if files else ""
    failed = [event["data"]["reason"] for event in run.events if event["kind"] == "samples_failed"]
    pictures, problem = [], f"no picture: {failed[-1] if failed else f'the run did not reach its end ({run.state})'}"
    for number, path in enumerate(file for file in files if file.name.split("_")[1] == step):
        content = path.read_bytes()
        if not content.startswith(_PNG_SIGNATURE) or len(content) > _MAX_PICTURE_BYTES:
            problem = f"{path.name} is no PNG or larger than {_MAX_PICTURE_BYTES / 1e6:.1f} MB"
            continue
        name = _file_name(section, f"sample_{section.runs.index(run)}_{number}")
        title = path.stem.removeprefix(f"step_{step}_").replace("_", " ")
        pictures.append(Picture(name, title, f"{label}: {title}", content))
    caption = f"{label}, seed {run.seed}" + (f", step {int(step):,}" if step.isdigit() else "")
    return Sample(caption, tuple(pictures), "" if pictures else problem)


def _render(section: Section, draw: Callable[[Section, Figure], None]) -> bytes:
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(9.0, 3.6), dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        draw(section, figure)
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    few_levels = (np.round(pixels / _LEVEL) * _LEVEL).astype(np.uint8)  # half the bytes, no difference to the eye
    content = io.BytesIO()
    imsave(content, few_levels, format="png", pil_kwargs={"optimize": True})
    return content.getvalue()


def _file_name(section: Section, what: str) -> str:
    plain = "".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in f"{section.name}_{what}")
    return f"{plain}.png"


def _in_words(section: Section) -> str:
    return "; ".join(
        f"{group.label}: {len(group.failed)} of {len(group.runs)} failed, {len(group.finite)} finite to the horizon"
        for group in section.groups
    )
