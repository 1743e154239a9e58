"""liquidreg as a task: pairs of volumes in, displacements out, judged by labels and by the known answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from hpcstab.config import RunConfig
from hpcstab.data.checks import check_arrays
from hpcstab.models.liquidreg import config as keys
from hpcstab.models.liquidreg.data import Pairs
from hpcstab.models.liquidreg.lncc import centred_lncc, guarded_lncc, raw_lncc
from hpcstab.models.liquidreg.losses import diffusion, folding, liquid_stability, mean_square, volume_change
from hpcstab.models.liquidreg.metrics import (
    dice_by_label,
    endpoint_error,
    folding_share,
    mean_dice,
    psnr_db,
    reach,
    sd_log_jacobian,
)
from hpcstab.models.liquidreg.network import LiquidRegistration, Registration
from hpcstab.models.liquidreg.pairs import pairs_of
from hpcstab.models.liquidreg.pictures import row_of_slices
from hpcstab.models.liquidreg.warping import jacobian_determinant, warp
from hpcstab.task import Baseline, DataFinding, Maximum, Metric, Partial, Picture, Split, StepContext, Sum

NUM_PICTURES = 2
_NO_LNCC = math.inf  # a window without a value is no extreme
_OF_KNOWN = ("epe", "reach")
_BESIDE = (
    Metric("beside_dice", "1", "higher", "Dice of grey and white matter of Colin27 on MNI152, whose answer is unknown"),
    Metric("beside_folding", "1", "lower", "folding of Colin27 on MNI152"),
    Metric("beside_sd_log_j", "1", "lower", "standard deviation of log(|J| + 3) of Colin27 on MNI152"),
    Metric("beside_lncc", "1", "higher", "mean LNCC, centred form, of Colin27 on MNI152"),
)


class Task:
    """Diffeomorphic registration of pairs of brains (write-up liquidreg)."""

    Config: ClassVar[type[RunConfig]] = keys.Config
    metrics: tuple[Metric, ...] = (
        Metric("dice", "1", "higher", "Dice of the fixed and the warped labels, mean over labels, mean over pairs"),
        Metric("epe", "voxel", "lower", "mean distance to the known displacement inside the brain, mean over pairs"),
        Metric("folding", "1", "lower", "part of the voxels with a Jacobian determinant of 0 or less"),
        Metric("sd_log_j", "1", "lower", "standard deviation of log(|J| + 3), as in Learn2Reg, mean over pairs"),
        Metric(
            "reach", "1", "higher", "largest displacement inside the brain over the largest needed, mean over pairs"
        ),
        Metric("lncc", "1", "higher", "mean LNCC of fixed and warped volumes, centred form, mean over pairs"),
        Metric("lncc_low", "1", "higher", "lowest LNCC of any window that has one, in the form of the loss"),
        Metric("lncc_high", "1", "lower", "highest LNCC of any window that has one, in the form of the loss"),
        Metric("lncc_nan", "1", "lower", "part of the windows whose LNCC, in the form of the loss, is NaN"),
        Metric("psnr", "dB", "higher", "of the warped volume, peak: range of the fixed one, mean over pairs"),
    )
    loss_term_names = ("lncc", "jacobian", "velocity", "liquid", "diffusion", "folding")
    diagnostics = ("lncc_absmax", "jacobian_min", "jacobian_max", "displacement_absmax", "squaring_step")
    eval_batch_size = 4

    def __init__(self, config: keys.Config, seed: int) -> None:
        self._config = config
        self._source = pairs_of(config.data, seed)
        splits: tuple[Split, ...] = ("train", "validation")
        self._pairs = {split: Pairs(self._source, split, config.data.normalize) for split in splits}
        known = tuple(m for m in self.metrics if self._source.answers_known or m.name not in _OF_KNOWN)
        names = self._source.label_names
        self._labels = {f"dice_{name.replace(' ', '_')}": number for number, name in names.items()}
        by_label = tuple(
            Metric(metric, "1", "higher", f"Dice of {names[number]}, mean over the pairs that have it")
            for metric, number in self._labels.items()
        )
        self.metrics = known + by_label + (_BESIDE if self._source.beside else ())

    def network(self) -> LiquidRegistration:
        return LiquidRegistration(self._config.network)

    def dataset(self, split: Split) -> Pairs:
        return self._pairs[split]

    def loss_terms(
        self, network: LiquidRegistration, batch: Mapping[str, Tensor], context: StepContext
    ) -> Mapping[str, Tensor]:
        """``batch`` of :class:`Pairs` -> the six terms; labels and known displacements are not looked at."""
        found = network(batch["fixed"], batch["moving"])
        similarity, hidden = self._similarity(batch["fixed"], found.warped)
        if hidden is not None:
            context.count_masked(hidden)
        determinants = jacobian_determinant(found.displacement)
        context.diagnostic("lncc_absmax", similarity.abs().amax())
        context.diagnostic("jacobian_min", determinants.amin())
        context.diagnostic("jacobian_max", determinants.amax())
        context.diagnostic("displacement_absmax", found.displacement.abs().amax())
        context.diagnostic("squaring_step", found.velocity.abs().amax() / 2**self._config.network.num_squarings)
        return {
            "lncc": -similarity.mean(),
            "jacobian": volume_change(determinants),
            "velocity": mean_square(found.velocity),
            "liquid": liquid_stability(found.weights),
            "diffusion": diffusion(found.displacement),
            "folding": folding(determinants),
        }

    def evaluate(
        self, network: LiquidRegistration, batch: Mapping[str, Tensor], context: StepContext
    ) -> Mapping[str, Partial]:
        return self._scores(network(batch["fixed"], batch["moving"]), batch)

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        known = {"lncc_low": -totals["minus_lncc_low"], "lncc_high": totals["lncc_high"]}
        known |= {name: _mean(totals[name], totals[f"pairs_of_{name}"]) for name in self._labels}
        return known | {
            name: _mean(totals[name], totals["beside_pairs" if name.startswith("beside_") else "pairs"])
            for name in (metric.name for metric in self.metrics)
            if name not in known
        }

    def baselines(self) -> Sequence[Baseline]:
        """No registration at all, and the known answer, which labels sampled on a grid keep below a Dice of 1."""
        batch = torch.utils.data.default_collate([self._pairs["validation"][i] for i in range(self._num_held_out)])
        known = batch["displacement"].nan_to_num()  # the pair beside has no answer: it stays as it is
        known_answer = (
            [Baseline("known_answer", "reference", self._scores_of(known, batch))] if self._source.answers_known else []
        )
        return [
            Baseline("no_registration", "floor", self._scores_of(torch.zeros_like(known), batch)),
            *known_answer,
        ]

    def data_facts(self) -> Mapping[str, int | float | str]:
        return {
            **self._source.facts(),
            "num_train_pairs": len(self._pairs["train"]),
            "num_validation_pairs": self._num_held_out,
            "num_labels": self._source.num_labels,
        }

    def samples(self, network: LiquidRegistration, context: StepContext) -> Sequence[Picture]:
        """The first held-out pairs: fixed, moving, warped, magnitude of the displacement, warped grid."""
        pictures = []
        for index in range(min(NUM_PICTURES, self._num_held_out)):
            item = self._pairs["validation"][index]
            found = network(item["fixed"][None].to(context.device), item["moving"][None].to(context.device))
            name = f"{self._pairs['validation'].ids[index]}_fixed_moving_warped_displacement_grid"
            warped, displacement = (field[0].detach().float().cpu() for field in (found.warped, found.displacement))
            panels = row_of_slices(item["fixed"], item["moving"], warped, displacement)
            pictures.append(Picture(name, panels))
        return pictures

    def check_data(self) -> Sequence[DataFinding]:
        edge = self._config.data.edge
        volumes = {str(split): pairs.fixed_volumes() for split, pairs in self._pairs.items()}
        return [*self._source.findings, *check_arrays(volumes, (edge, edge, edge), self._source.value_range)]

    @property
    def _num_held_out(self) -> int:
        return len(self._pairs["validation"])

    def _similarity(self, fixed: Tensor, warped: Tensor) -> tuple[Tensor, Tensor | None]:
        """LNCC at each voxel in the form of the loss, and where a mask hid something impossible."""
        losses = self._config.losses
        if losses.lncc == "guarded":
            return guarded_lncc(fixed, warped.to(fixed.dtype), losses.lncc_window)
        form = raw_lncc if losses.lncc == "raw" else centred_lncc
        return form(fixed, warped, losses.lncc_window), None

    def _scores(self, found: Registration, batch: Mapping[str, Tensor]) -> dict[str, Partial]:
        """Figures of a batch; those of pairs add up, those of a pair beside the others apart."""
        labels, beside = batch["fixed_labels"], batch["beside"]
        similarity, _ = self._similarity(batch["fixed"], found.warped)
        warped_labels = warp(batch["moving_labels"].float(), found.displacement, mode="nearest").round()
        determinants = jacobian_determinant(found.displacement)
        centred = centred_lncc(batch["fixed"], found.warped, self._config.losses.lncc_window)
        by_label = dice_by_label(labels, warped_labels, self._source.num_labels)
        figures = {
            "dice": mean_dice(by_label),
            "folding": folding_share(determinants),
            "sd_log_j": sd_log_jacobian(determinants),
            "lncc": centred.flatten(1).double().mean(dim=1),
            "psnr": psnr_db(found.warped, batch["fixed"]),
            "lncc_nan": similarity.isnan().flatten(1).double().mean(dim=1),
            "pairs": torch.ones_like(beside, dtype=torch.float64),
        }
        sums: dict[str, Partial] = {}
        for name, values in (figures | self._against_the_answer(found, batch)).items():
            sums[name] = Sum(torch.where(beside, 0.0, values).sum())
        for name, values in figures.items():
            sums[f"beside_{name}"] = Sum(torch.where(beside, values, 0.0).sum())
        for name, number in self._labels.items():
            of_label = by_label[:, number - 1]
            sums[name] = Sum(of_label.nansum())
            sums[f"pairs_of_{name}"] = Sum(of_label.isfinite().double().sum())
        sums["minus_lncc_low"] = Maximum((-similarity).nan_to_num(nan=-_NO_LNCC).amax())
        sums["lncc_high"] = Maximum(similarity.nan_to_num(nan=-_NO_LNCC).amax())
        return sums

    def _against_the_answer(self, found: Registration, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not self._source.answers_known:
            return {}
        known, brain = batch["displacement"], batch["fixed_labels"] > 0
        figures = (endpoint_error(found.displacement, known, brain), reach(found.displacement, known, brain))
        return dict(zip(_OF_KNOWN, figures, strict=True))

    def _scores_of(self, displacement: Tensor, batch: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Scores of a given displacement instead of a network's."""
        warped = warp(batch["moving"], displacement)
        found = Registration(displacement, displacement, warped, displacement.new_zeros(len(warped), 1))
        return self.summarize({name: float(part.value) for name, part in self._scores(found, batch).items()})


def _mean(total: float, count: float) -> float:
    """NaN of nothing: where the batch with the pair beside could not be evaluated."""
    return total / count if count else math.nan
