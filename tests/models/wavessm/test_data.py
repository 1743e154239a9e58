"""Corruptions and pairs: seeded, held out by image, and what the mask says."""

from __future__ import annotations

import numpy as np

from hpcstab.data.photos import photo
from hpcstab.models.wavessm.corruption import corrupt
from hpcstab.models.wavessm.data import pairs_of
from tests.models.wavessm.test_task import make_config

COVERAGE = (0.05, 0.25)


def test_outside_the_mask_nothing_is_touched() -> None:
    for seed in range(20):
        clean = photo(32, np.random.default_rng(seed))
        corrupted, mask = corrupt(clean, COVERAGE, np.random.default_rng(seed))
        assert np.array_equal(corrupted[~mask], clean[~mask])
        assert 0.02 < mask.mean() < 0.8
        assert (corrupted[mask] != clean[mask]).any(axis=1).mean() > 0.9


def test_corruption_is_its_seed() -> None:
    clean = photo(32, np.random.default_rng(0))
    first, again, other = (corrupt(clean, COVERAGE, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)


def test_each_image_stands_in_one_split_and_samples_do_not_depend_on_the_rest() -> None:
    data = make_config().data
    splits = pairs_of(data, seed=0).splits
    assert not set(splits["train"].ids) & set(splits["validation"].ids)
    assert len(splits["train"]) == 12 and len(splits["validation"]) == 4
    item = splits["train"][0]
    assert {name: tuple(value.shape) for name, value in item.items()} == {
        "corrupted": (3, 16, 16),
        "clean": (3, 16, 16),
        "mask": (1, 16, 16),
    }
    more = pairs_of(data.model_copy(update={"num_samples": 40}), seed=0).splits
    same = {name: more[split][index] for split in more for index, name in enumerate(more[split].ids)}
    assert same[splits["train"].ids[0]]["corrupted"].equal(item["corrupted"])
    assert not pairs_of(data, seed=1).splits["train"][0]["clean"].equal(item["clean"])
