"""swae3d as a task: figures against hand computation, the honest split, the leak of the write-up's set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.models.swae3d import codecs
from hpcstab.models.swae3d.config import Config
from hpcstab.models.swae3d.task import Task
from hpcstab.training.context import TrainingContext

CONTEXT = TrainingContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))


def make_task(variant: str = "before", scale: str = "tiny", seed: int = 0, *settings: str) -> Task:
    config = resolve(load_experiment("swae3d"), variant, scale, parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return Task(config, seed)


class Offset(nn.Module):
    """A 'network' that returns its input plus a constant in scaled units."""

    def forward(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return blocks + 0.25, blocks.flatten(1)[:, :4]


def test_psnr_is_of_whole_volumes_in_their_own_unit() -> None:
    task = make_task()
    validation = task.dataset("validation")
    batch = torch.stack([validation[index] for index in range(len(validation))])
    totals = {name: float(part.value) for name, part in task.evaluate(Offset(), batch, CONTEXT).items()}
    metrics = task.summarize(totals)

    low, high = task._volumes.training_range
    error = 0.25 * (high - low) / 2  # a scaled offset in the volumes' own unit
    volumes = [volume for _, volume in task._volumes.volumes("validation")]
    by_hand = [20 * np.log10(volume.max() - volume.min()) - 10 * np.log10(error**2) for volume in volumes]
    assert metrics["psnr"] == pytest.approx(np.mean(by_hand), abs=1e-4)
    assert metrics["mse"] == pytest.approx(error**2, rel=1e-5)
    assert metrics["max_error"] == pytest.approx(error, rel=1e-5)


def test_operating_point_of_the_write_up() -> None:
    """512 float32 to 16 float32: 2048 bytes to 64, 32:1, 1 bit a value."""
    metrics = make_task("before", "full").summarize({"psnr_db": 1.0, "mse": 1.0, "max_error": 1.0, "num_volumes": 1.0})
    assert (metrics["ratio"], metrics["bits_per_value"]) == (32.0, 1.0)


def test_blocks_restore_the_volume() -> None:
    task = make_task()
    _, volume = next(iter(task._volumes.volumes("validation")))
    assert np.allclose(task._volumes.restore(task._volumes.scaled_blocks(volume), (16, 16, 16)), volume, atol=1e-6)


def test_training_blocks_span_minus_one_to_one() -> None:
    blocks = make_task().dataset("train").blocks
    assert float(blocks.min()) == pytest.approx(-1.0, abs=1e-6)
    assert float(blocks.max()) == pytest.approx(1.0, abs=1e-6)


def test_baselines_on_held_out_volumes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "available", lambda: False)  # they have tests of their own, on smaller volumes
    floor, pca = make_task("before", "quick").baselines()
    assert (floor.name, floor.role, pca.name, pca.role) == ("mean_predictor", "floor", "block_pca_16", "reference")
    # the mean of a product of sines is near 0, its MSE an eighth of the squared amplitude: 15.05 dB of its range
    assert floor.scores["psnr"] == pytest.approx(15.05, abs=0.4)
    assert pca.scores["psnr"] > floor.scores["psnr"]


def test_pca_is_exact_on_data_of_its_own_rank() -> None:
    task = make_task("before+repeated", "tiny", 0, "data.wave_numbers=[2]", "network.latent_dim=8")
    _, pca, *_ = task.baselines()
    assert pca.scores["psnr"] > 80.0  # one distinct volume of 8 blocks has rank 7 around its mean


def test_honest_split_holds_out_whole_combinations() -> None:
    volumes = make_task("before", "small")._volumes
    held_out = {volumes.functions[index].wave_numbers for index in volumes.ids["validation"]}
    trained = {volumes.functions[index].wave_numbers for index in volumes.ids["train"]}
    assert held_out
    assert not held_out & trained
    assert len(volumes.ids["train"]) == 200


def test_the_write_ups_set_leaks_and_the_check_says_so() -> None:
    """The write-up's 500 samples are 5 distinct volumes; every validation volume is a training volume."""
    task = make_task("before+repeated", "full")
    facts = task.data_facts()
    assert (facts["num_train_volumes"], facts["num_distinct_train_volumes"]) == (400, 5)
    assert facts["num_train_items"] == 50_000
    assert (facts["num_validation_volumes"], facts["num_leaked_volumes"]) == (100, 100)
    leak = task.check_data()[-1]
    assert (leak.kind, leak.split, leak.count) == ("duplicate", "validation", 100)


def test_loss_is_the_same_for_a_resumed_step() -> None:
    task = make_task()
    torch.manual_seed(0)
    network = task.network()
    batch = task.dataset("train").blocks[:8]
    first, again = (task.loss_terms(network, batch, CONTEXT)["sliced_wasserstein"] for _ in range(2))
    assert torch.equal(first, again)


def test_samples_are_pictures_of_three_panels() -> None:
    task = make_task()
    torch.manual_seed(0)
    pictures = task.samples(task.network(), CONTEXT)
    assert len(pictures) == 2
    assert pictures[0].pixels.dtype == np.uint8
    assert pictures[0].pixels.shape == (16 * 4, 3 * 16 * 4 + 2 * 4)


def test_loss_terms_are_fp64_throughout_where_the_network_is() -> None:
    """A replay asks whether fp64 would have been finite: a term that rounds down to fp32 on its way cannot say."""
    task = make_task("cured")
    items = task.dataset("train")
    batch = torch.stack([items[index] for index in range(4)]).double()
    terms = task.loss_terms(task.network().double(), batch, CONTEXT)
    assert {term.dtype for term in terms.values()} == {torch.float64}
    torch.stack(list(terms.values())).sum().backward()
