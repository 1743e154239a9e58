"""The analytic volumes: known values, what makes the two sets differ, a split without leaks."""

import math

import numpy as np
import pytest

from hpcstab.data.functions import (
    SineProduct,
    repeated_functions,
    split_by_combination,
    varied_functions,
)
from hpcstab.errors import DataError

WAVE_NUMBERS = (2, 3, 4, 5, 6)


def test_volume_has_the_values_of_the_formula() -> None:
    volume = SineProduct((1, 2, 3), (0.1, 0.2, 0.3), 0.7).volume(5)
    assert volume.shape == (5, 5, 5)
    assert volume.dtype == np.float32
    x, y, z = -0.5, 0.0, 1.0  # indices 1, 2, 4 of linspace(-1, 1, 5)
    expected = (
        0.7
        * math.sin(2 * math.pi * x + 0.1)
        * math.sin(2 * math.pi * 2 * y + 0.2)
        * math.sin(2 * math.pi * 3 * z + 0.3)
    )
    assert volume[1, 2, 4] == pytest.approx(expected, rel=1e-6)


def test_repeated_functions_hold_five_volumes_only() -> None:
    functions = repeated_functions(500, WAVE_NUMBERS)
    assert len(functions) == 500
    assert set(functions) == {SineProduct((k, k, k)) for k in WAVE_NUMBERS}


def test_varied_functions_are_distinct_and_in_range() -> None:
    functions = varied_functions(500, WAVE_NUMBERS, seed=0)
    assert len(set(functions)) == 500
    assert all(0.5 <= f.amplitude <= 1.0 for f in functions)
    assert all(0.0 <= phase < 2 * math.pi for f in functions for phase in f.phases)
    combinations = [f.wave_numbers for f in functions]
    assert len(set(combinations)) == 125
    assert len(set(combinations[:20])) == 20
    assert any(len(set(combination)) == 3 for combination in combinations[:20])


def test_a_varied_function_depends_on_its_seed_and_id_alone() -> None:
    assert varied_functions(300, WAVE_NUMBERS, seed=1)[:20] == varied_functions(20, WAVE_NUMBERS, seed=1)
    first, second = varied_functions(20, WAVE_NUMBERS, seed=1), varied_functions(20, WAVE_NUMBERS, seed=2)
    assert not set(first) & set(second)


@pytest.mark.parametrize(("num", "wave_numbers"), [(0, (2,)), (5, ()), (5, (0, 2))])
def test_impossible_requests_are_refused(num: int, wave_numbers: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        varied_functions(num, wave_numbers, seed=0)
    with pytest.raises(DataError):
        repeated_functions(num, wave_numbers)


@pytest.mark.parametrize("num", [2, 20, 60, 130, 500])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_split_shares_no_combination_and_no_id(num: int, seed: int) -> None:
    functions = varied_functions(num, WAVE_NUMBERS, seed)
    train_ids, validation_ids = split_by_combination(functions, 0.8, seed)
    assert sorted(train_ids + validation_ids) == list(range(num))
    assert train_ids and validation_ids
    train, validation = ({functions[i].wave_numbers for i in ids} for ids in (train_ids, validation_ids))
    assert not train & validation
    assert (train_ids, validation_ids) == split_by_combination(functions, 0.8, seed)
    if num >= 20:
        assert len(validation_ids) == round(0.2 * num)


def test_split_depends_on_the_seed() -> None:
    functions = varied_functions(60, WAVE_NUMBERS, seed=0)
    assert split_by_combination(functions, 0.8, 0) != split_by_combination(functions, 0.8, 1)


def test_split_of_the_repeated_set_is_as_near_as_whole_combinations_allow() -> None:
    train_ids, validation_ids = split_by_combination(repeated_functions(500, WAVE_NUMBERS), 0.77, seed=0)
    assert (len(train_ids), len(validation_ids)) == (400, 100)


@pytest.mark.parametrize(("wave_numbers", "fraction"), [((2,), 0.8), ((2, 3), 1.0), ((2, 3), 0.0)])
def test_split_that_cannot_be_is_refused(wave_numbers: tuple[int, ...], fraction: float) -> None:
    with pytest.raises(DataError, match="cannot split"):
        split_by_combination(repeated_functions(5, wave_numbers), fraction, seed=0)
