"""The scale of a curve's axis, and which crosses get a label: what makes a picture with many runs readable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcstab.report.curves import scale_y, steps_with_room


@pytest.fixture
def axes() -> Iterator[Axes]:
    yield Figure().subplots()


def test_positive_values_are_on_a_log_axis(axes: Axes) -> None:
    axes.plot(np.linspace(0.1, 10.0, 500))
    scale_y(axes, [])
    assert axes.get_yscale() == "log"
    assert axes.get_title(loc="right") == ""


def test_values_of_both_signs_and_one_size_are_on_a_linear_axis(axes: Axes) -> None:
    axes.plot(np.linspace(-1.0, 3.0, 500))
    scale_y(axes, [])
    assert axes.get_yscale() == "linear"


def test_values_of_both_signs_that_differ_widely_are_not_pressed_together(axes: Axes) -> None:
    axes.plot(np.concatenate([np.linspace(-1.0, 1.0, 400), np.geomspace(1.0, 1e6, 100)]))
    scale_y(axes, [])
    assert axes.get_yscale() == "symlog"
    low, middle, high = axes.transData.transform([(0, -1.0), (0, 1.0), (0, 1e6)])[:, 1]
    assert (middle - low) / (high - low) > 0.2


@pytest.mark.parametrize("lowest", [-1.0, 0.1])
def test_a_few_huge_values_are_cut_and_the_picture_says_so(axes: Axes, lowest: float) -> None:
    values = np.linspace(lowest, 2.0, 1000)
    values[[30, 60]] = 4e21
    axes.plot(values)
    scale_y(axes, [])
    assert 2.0 < axes.get_ylim()[1] < 10.0
    assert axes.get_ylim()[0] < lowest
    assert axes.get_title(loc="right") == "not shown: a few values up to 4e+21"


def test_a_cross_is_never_cut(axes: Axes) -> None:
    values = np.linspace(-1.0, 2.0, 1000)
    values[-2:] = [5e7, 4e21]
    axes.plot(values)
    scale_y(axes, [5e7])
    assert axes.get_ylim()[1] > 5e7


def test_without_a_finite_value_nothing_is_scaled(axes: Axes) -> None:
    axes.plot([np.nan, np.nan])
    scale_y(axes, [])
    assert axes.get_yscale() == "linear"


def test_no_label_hits_the_one_before_it() -> None:
    labels = {15: "15 (5 runs)", 27: "27 (3 runs)", 33: "33", 50: "50 (3 runs)", 51: "51"}
    assert steps_with_room(labels, end=75, inches=4.0) == [15, 50]
    assert steps_with_room(labels, end=75, inches=12.0) == [15, 27, 50]
    assert steps_with_room(labels, end=40, inches=12.0) == [15, 27, 33]
    assert steps_with_room({}, end=75, inches=4.0) == []
