"""A snapshot of the generators is what they are, whatever was or was not drawn since the last one."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hpcstab.stability.random_state import RandomSnapshot, put_random_state, random_state_kept, take_random_state

DRAWS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "a word": lambda: np.random.randint(1000),
    "a normal number": lambda: np.random.normal(),
    "two normal numbers": lambda: (np.random.normal(), np.random.normal()),
    "all words": lambda: np.random.random(1000),
    "another seed": lambda: np.random.seed(5),
    "the same seed": lambda: np.random.seed(0),
    "of Python": lambda: random.random(),
    "of torch": lambda: torch.rand(()),
}


def drawn() -> list[float]:
    return [random.random(), *np.random.normal(size=3), *np.random.random(2), *torch.rand(2).tolist()]


@pytest.mark.parametrize("first", DRAWS)
@pytest.mark.parametrize("second", DRAWS)
def test_a_snapshot_brings_back_what_would_have_been_drawn(first: str, second: str) -> None:
    np.random.seed(0)
    for draw in (DRAWS[first], DRAWS[second]):
        RandomSnapshot.take()  # which may be given again later
        draw()
    snapshot = RandomSnapshot.take()
    expected = drawn()
    snapshot.put()
    assert drawn() == expected


def test_the_form_for_files_is_the_same() -> None:
    np.random.seed(0)
    np.random.normal()
    state = take_random_state()
    expected = drawn()
    put_random_state(state)
    assert drawn() == expected


def test_kept_within_a_block() -> None:
    np.random.seed(0)
    with random_state_kept():
        expected = drawn()
    assert drawn() == expected
