"""Colours, line styles and text of the figures: safe for colour-blind readers and for hostile labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hpcstab.report.sections import Group

INK = "#333333"
FAINT = "#8a8a8a"
RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}

BRANCH: Any = {"marker": "o", "markersize": 6.5, "markerfacecolor": "white", "markeredgewidth": 1.6}
"""The circle where a rerun goes on from its parent."""

_NAMED = {"before": "#D55E00", "after": "#0072B2", "cured": "#009E73"}  # Okabe-Ito: vermillion, blue, bluish green
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288")
_NAMED_STYLES: dict[str, Any] = {"before": (0, (4, 1.6)), "after": (0, (1.2, 1.2)), "cured": "solid"}
_OTHER_STYLES: tuple[Any, ...] = ((0, (6, 1.5, 1.2, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)))


@dataclass(frozen=True)
class Look:
    """How one variant is drawn, in every figure and table alike."""

    colour: str
    line: Any


def looks(groups: Sequence[Group]) -> dict[str, Look]:
    """A look for each label; colour and line style both tell variants apart."""
    found, others = {}, 0
    for group in groups:
        if group.label in _NAMED:
            found[group.label] = Look(_NAMED[group.label], _NAMED_STYLES[group.label])
        else:
            colour, line = _OTHERS[others % len(_OTHERS)], _OTHER_STYLES[others % len(_OTHER_STYLES)]
            found[group.label] = Look(colour, line)
            others += 1
    return found


def figure_text(text: str, longest: int = 48) -> str:
    """``text`` without what matplotlib would interpret or has no glyph for, cut to ``longest`` characters."""
    plain = "".join(letter if 32 <= ord(letter) < 127 else "?" for letter in text).replace("$", r"\$")
    return f"{plain[: longest - 3]}..." if len(plain) > longest else plain
