"""When things happen: the length of the training and the steps of its cadences."""

from __future__ import annotations

from dataclasses import dataclass

from hpcstab.config import RunConfig


@dataclass(frozen=True)
class Cadence:
    """Lengths and cadences in steps."""

    total_steps: int
    warmup_steps: int
    evaluate_every: int
    checkpoint_every: int
    probe_every: int
    health_every: int
    statistics_every: int | None

    def evaluates_before(self, step: int) -> bool:
        """True where an evaluation comes before training step ``step``: at 0 and then on the cadence."""
        return step % self.evaluate_every == 0

    def saves_before(self, step: int) -> bool:
        """True where a checkpoint comes before training step ``step``; the end of the training saves by itself."""
        return step > 0 and step % self.checkpoint_every == 0

    def probes_at(self, step: int) -> bool:
        """True where training step ``step`` is probed: at 0, on the cadence, and in the last step."""
        return step % self.probe_every == 0 or step == self.total_steps - 1

    def checks_after(self, step: int) -> bool:
        """True where the state is looked at after training step ``step``."""
        return (step + 1) % self.health_every == 0

    def checks_statistics_after(self, step: int) -> bool:
        """True where the running statistics are looked at after training step ``step``."""
        return self.statistics_every is not None and (step + 1) % self.statistics_every == 0


def build_cadence(config: RunConfig, steps_per_epoch: int) -> Cadence:
    """Cadences in steps; ``max_steps``, where set, is the length."""
    trainer = config.trainer
    factor = trainer.duration_factor
    statistics_every = config.stability.batchnorm.check_every
    return Cadence(
        total_steps=trainer.max_steps or trainer.epochs * steps_per_epoch,
        warmup_steps=config.scheduler.warmup.in_steps(steps_per_epoch, factor),
        evaluate_every=trainer.evaluate_every.in_steps(steps_per_epoch, factor),
        checkpoint_every=trainer.checkpoint_every.in_steps(steps_per_epoch, factor),
        probe_every=trainer.probe_every.in_steps(steps_per_epoch, factor),
        health_every=config.stability.health_every.in_steps(steps_per_epoch, factor),
        statistics_every=statistics_every.in_steps(steps_per_epoch, factor) if statistics_every else None,
    )
