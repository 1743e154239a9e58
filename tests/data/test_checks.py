"""The data check finds what it says, and only that."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.checks import check_arrays, num_distinct

GENERATOR = np.random.default_rng(0)
SHAPE = (4, 4, 4)


def sample() -> np.ndarray:  # type: ignore[type-arg]
    return GENERATOR.uniform(-1, 1, SHAPE).astype(np.float32)


def check(train: list[np.ndarray], validation: list[np.ndarray]):  # type: ignore[type-arg, no-untyped-def]
    named = {
        "train": [(f"t{index}", array) for index, array in enumerate(train)],
        "validation": [(f"v{index}", array) for index, array in enumerate(validation)],
    }
    return check_arrays(named, SHAPE, (-1.0, 1.0))


def test_clean_data_has_no_findings() -> None:
    assert check([sample(), sample()], [sample()]) == []


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        ("non_finite", np.full(SHAPE, np.nan, np.float32)),
        ("non_finite", np.where(np.arange(64).reshape(SHAPE) == 7, np.inf, 0).astype(np.float32)),
        ("constant", np.full(SHAPE, 0.5, np.float32)),
        ("range", np.linspace(-2, 1, 64, dtype=np.float32).reshape(SHAPE)),
        ("shape", np.zeros((4, 4), np.float32)),
    ],
)
def test_each_problem_is_found_in_its_split(kind: str, bad: np.ndarray) -> None:  # type: ignore[type-arg]
    (finding,) = check([sample()], [sample(), bad])
    assert (finding.kind, finding.split, finding.count) == (kind, "validation", 1)
    assert "v1" in finding.message


def test_copies_within_a_split_and_across_it_are_told_apart() -> None:
    first, second = sample(), sample()
    within, across = check([first, first, second], [second, sample()])
    assert (within.split, within.count) == ("train", 1)
    assert "copies of other train samples" in within.message
    assert (across.split, across.count) == ("validation", 1)
    assert "(a leak): v0 = train t2" in across.message


def test_num_distinct() -> None:
    first = sample()
    assert num_distinct([("a", first), ("b", first.copy()), ("c", sample())]) == 2
