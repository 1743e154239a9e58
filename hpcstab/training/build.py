"""A run's config and task -> the parts of a trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from hpcstab.config import FailureCondition, RunConfig
from hpcstab.metrics import metrics_header
from hpcstab.rundir import RunDir
from hpcstab.seeds import keyed_seed
from hpcstab.stability.batchnorm.layers import configure_batchnorm
from hpcstab.stability.batchnorm.running_statistics import RunningStatistics
from hpcstab.stability.gate.ema import Ema
from hpcstab.stability.gate.gate import Gate
from hpcstab.stability.gate.loss_scale import LossScale
from hpcstab.stability.gate.ranks import agreement
from hpcstab.task import Task
from hpcstab.training.batches import TrainingBatches
from hpcstab.training.batchnorm_care import BatchNormCare
from hpcstab.training.cadence import build_cadence
from hpcstab.training.check_task import check_task
from hpcstab.training.failure import FailureWatch
from hpcstab.training.guarding import build_guarding
from hpcstab.training.objective import Objective
from hpcstab.training.optimizers import Optimizers, build_optimizers
from hpcstab.training.precision import pick_device, set_tf32
from hpcstab.training.ranks import Ranks, check_shares, join_ranks
from hpcstab.training.records import Records
from hpcstab.training.saver import Saver
from hpcstab.training.step import StepRunner
from hpcstab.training.tensorboard import TensorBoard
from hpcstab.training.trainer import Trainer

CPU = torch.device("cpu")
"""Where networks are built that are not trained here."""


def build_trainer(  # noqa: PLR0913 - the composition root hands over all parts at once
    task: Task,
    config: RunConfig,
    run: RunDir,
    seed: int,
    attempt: int,
    primary: str,
    failure: Sequence[FailureCondition] = (),
    stop_requested: Callable[[], str | None] = lambda: None,
    ranks: Ranks | None = None,
) -> Trainer:
    """Network, data order, optimizer and records of one attempt; ``ranks`` None: those that the launcher started.

    Raises:
        ConfigError: the task or its config cannot be trained; says why.
    """
    device = pick_device()
    set_tf32(config.precision)
    check_task(task, config, primary)
    network = build_network(task, config, seed, device)
    ranks = ranks or join_ranks()
    check_shares(config.data.batch_size, config.trainer.micro_batches, ranks.count)
    batches = TrainingBatches(task.dataset("train"), config.data, seed, ranks)
    cadence = build_cadence(config, batches.steps_per_epoch)
    header = metrics_header(task.loss_term_names, task.diagnostics)
    budget = config.trainer.nonfinite_budget if config.stability.guards is None else None
    failure_watch = FailureWatch(failure, budget, header)
    tensorboard = TensorBoard(config.trainer.tensorboard if ranks.is_first else "off", run)
    records = Records(run, task, attempt, cadence.total_steps, primary, writes=ranks.is_first)
    if tensorboard.absent:
        records.events.write("tensorboard_absent", 0, 0)
    statistics = RunningStatistics(network, config.stability.batchnorm.repair)
    optimizer = build_optimizers(task, network, config.optimizer)
    runner = StepRunner(
        task=task,
        network=network,
        optimizer=optimizer,
        gate=build_gate(config, network, optimizer, device),
        objective=Objective(config.losses, batches.steps_per_epoch, config.trainer.duration_factor),
        statistics=statistics,
        precision=config.precision,
        num_micro_batches=config.trainer.micro_batches,
        device=device,
        seed=seed,
        measures_health=config.stability.guards is not None,
        ranks=ranks,
    )
    return Trainer(
        task=task,
        config=config,
        run=run,
        seed=seed,
        device=device,
        network=network,
        optimizer=optimizer,
        runner=runner,
        batches=batches,
        batchnorm=BatchNormCare(statistics),
        records=records,
        failure=failure_watch,
        cadence=cadence,
        saver=Saver(),
        tensorboard=tensorboard,
        stop_requested=stop_requested,
        ranks=ranks,
        guarding=build_guarding(config.stability.guards),
    )


def build_network(task: Task, config: RunConfig, seed: int, device: torch.device) -> torch.nn.Module:
    """The task's network as it is before the first step, configured and on its device."""
    torch.manual_seed(keyed_seed(seed, "network"))
    network = task.network().to(device)
    batchnorm = config.stability.batchnorm
    configure_batchnorm(network, batchnorm.momentum, batchnorm.eps)
    return network


def build_gate(config: RunConfig, network: torch.nn.Module, optimizer: Optimizers, device: torch.device) -> Gate:
    """The gate that the config asks for, with loss scale and moving average where it has them."""
    scale, decay = config.precision.loss_scale, config.trainer.ema_decay
    return Gate(
        network,
        list(optimizer),
        config.stability.gate,
        config.stability.clip_grad_norm,
        loss_scale=LossScale(scale.initial, scale.growth_every, device) if scale is not None else None,
        ema=Ema(network, decay) if decay is not None else None,
        agree=agreement(),
    )
