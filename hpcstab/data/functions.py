"""Analytic volumes of SWAE 3D: products of sines in two sets, and a split that does not leak.

R = edge of a volume. NumPy only.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError
from hpcstab.seeds import keyed_seed

WaveNumbers = tuple[int, int, int]


@dataclass(frozen=True)
class SineProduct:
    """`amplitude * prod_i sin(2 pi k_i x_i + phase_i)` over the cube [-1, 1]^3.

    wave_numbers: periods per unit length along the three axes; a volume shows twice as many. phases: radians.
    """

    wave_numbers: WaveNumbers
    phases: tuple[float, float, float] = (0.0, 0.0, 0.0)
    amplitude: float = 1.0

    def volume(self, resolution: int) -> NDArray[np.float32]:
        """Samples (R, R, R), axes in the order of `wave_numbers`, at `linspace(-1, 1, R)` along each."""
        coordinates = np.linspace(-1.0, 1.0, resolution)
        first, second, third = (
            np.sin(2 * np.pi * wave_number * coordinates + phase)
            for wave_number, phase in zip(self.wave_numbers, self.phases, strict=True)
        )
        product = self.amplitude * first[:, None, None] * second[None, :, None] * third[None, None, :]
        return product.astype(np.float32)


def repeated_functions(num: int, wave_numbers: Sequence[int]) -> list[SineProduct]:
    """The write-up's set: cycles over kx = ky = kz with no phase, so only `len(wave_numbers)` volumes differ.

    A random split of it puts a copy of every validation volume into training: kept to show what that hides.
    """
    _check_request(num, wave_numbers)
    return [SineProduct((k, k, k)) for k in itertools.islice(itertools.cycle(wave_numbers), num)]


def varied_functions(num: int, wave_numbers: Sequence[int], seed: int) -> list[SineProduct]:
    """The honest set: each function has its own phases in [0, 2 pi) and amplitude in [0.5, 1].

    The combinations (kx, ky, kz) are all `len(wave_numbers)**3`, in a seeded order, and samples go round
    them: no combination comes twice before each came once, so a small set is as varied as its size allows.
    Sample i depends on (seed, i) and `wave_numbers` alone, not on `num`.
    """
    _check_request(num, wave_numbers)
    candidates = sorted(set(wave_numbers))
    combinations = list(itertools.product(candidates, candidates, candidates))
    order = np.random.default_rng(keyed_seed(seed, "combination_order")).permutation(len(combinations))
    functions = []
    for sample_id in range(num):
        generator = np.random.default_rng(keyed_seed(seed, "varied_function", sample_id))
        first, second, third = generator.uniform(0.0, 2 * np.pi, size=3).tolist()
        amplitude = float(generator.uniform(0.5, 1.0))
        combination = combinations[order[sample_id % len(combinations)]]
        functions.append(SineProduct(combination, (first, second, third), amplitude))
    return functions


def _check_request(num: int, wave_numbers: Sequence[int]) -> None:
    if num < 1 or not wave_numbers or min(wave_numbers) < 1:
        raise DataError(
            f"asked for {num} functions of wave numbers {list(wave_numbers)}: "
            "need at least one function and one wave number, all wave numbers >= 1"
        )


def split_by_combination(
    functions: Sequence[SineProduct], train_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """Ids (train, validation), ascending: no combination (kx, ky, kz) is in both, so no volume can leak.

    The number of training volumes is the nearest to `train_fraction * len(functions)` that whole combinations
    reach with both sides non-empty; which combinations are held out depends on the seed.

    Raises:
        DataError: fewer than two combinations, or a fraction outside (0, 1).
    """
    ids_by_combination: dict[WaveNumbers, list[int]] = defaultdict(list)
    for sample_id, function in enumerate(functions):
        ids_by_combination[function.wave_numbers].append(sample_id)
    if len(ids_by_combination) < 2 or not 0.0 < train_fraction < 1.0:
        raise DataError(
            f"cannot split {len(functions)} functions of {len(ids_by_combination)} combination(s) of wave "
            f"numbers at train_fraction {train_fraction}: need at least 2 combinations (more samples or wave "
            "numbers) and a fraction between 0 and 1"
        )
    groups = [ids_by_combination[combination] for combination in sorted(ids_by_combination)]
    order = np.random.default_rng(keyed_seed(seed, "combination_split")).permutation(len(groups))

    # Subset sums: for each number of validation volumes, the first groups in seeded order that reach it.
    held_out: dict[int, tuple[int, ...]] = {0: ()}
    for group in order.tolist():
        for total, members in list(held_out.items()):
            held_out.setdefault(total + len(groups[group]), (*members, group))
    target = (1.0 - train_fraction) * len(functions)
    possible = [total for total in held_out if 0 < total < len(functions)]
    num_validation = min(possible, key=lambda total: (abs(total - target), total))

    validation_ids = sorted(sample_id for group in held_out[num_validation] for sample_id in groups[group])
    train_ids = sorted(set(range(len(functions))) - set(validation_ids))
    return train_ids, validation_ids
