"""How figures and cells are spelled, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NOTHING = "\N{EN DASH}"
"""A cell without a value."""

DAGGER = "\N{DAGGER}"
"""A score of a run that died afterwards."""


def signed(value: float, decimals: int) -> str:
    """``+1.20`` or, with a minus sign, ``\N{MINUS SIGN}0.15``."""
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def unit_of(metric: Mapping[str, Any]) -> str:
    """The unit of a metric; empty where it has none."""
    return "" if metric["unit"] in ("", "1") else printable(metric["unit"])


def with_unit(metric: Mapping[str, Any]) -> str:
    """``psnr [dB]``."""
    unit = unit_of(metric)
    return printable(metric["name"]) + (f" [{unit}]" if unit else "")


def printable(text: object) -> str:
    """``text`` on one line, without control characters that could drive a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))
