"""What a rerun is asked to train: the parent's config with fixes and overrides, and the network that it gives."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hpcstab.config import Branched, Experiment, RunConfig, branch, leaf_keys, load_experiment, read_run_config
from hpcstab.errors import ConfigError
from hpcstab.execute import load_task, read_config
from hpcstab.rerun.fit import Layout, layout_of, misfit_text, misfits
from hpcstab.rundir import RunDir
from hpcstab.task import Task
from hpcstab.training.batches import TrainingBatches
from hpcstab.training.build import CPU, build_network
from hpcstab.training.cadence import build_cadence

Overrides = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Asked:
    """A parent, and what is to differ: fixes by name and overrides; ``configs`` is where their YAML is looked for."""

    parent: RunDir
    added: tuple[str, ...]
    overrides: Overrides
    configs: Path | None

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return self.parent.identity()

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @cached_property
    def parent_config(self) -> RunConfig:
        return read_config(self.parent)[1]

    @cached_property
    def branched(self) -> Branched:
        """The config with all changes.

        Raises:
            ConfigError: a fix or key is unknown, in already or without effect, or a value is not allowed.
        """
        return self._branch(self.added, self.overrides)

    @property
    def config(self) -> RunConfig:
        return self.branched.resolved.config

    @cached_property
    def task(self) -> Task:
        return self._task(self.branched)

    @cached_property
    def network(self) -> Layout:
        """Names and shapes of the weights under the config with all changes."""
        return self._network(self.branched)

    def differences(self) -> list[str]:
        """Every key that differs from the parent's config: ``optimizer.lr 0.001 -> 0.0001``."""
        before, now = dict(leaf_keys(self.parent_config)), dict(leaf_keys(self.config))
        changed = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
        lines = [f"{key} {_shown(before.get(key))} -> {_shown(now.get(key))}" for key in changed]
        if any(key.startswith("network.") for key in changed):
            lines.append(
                "of network.*; a key that only sets initial weights has no effect, they come from the checkpoint"
            )
        return lines

    def refuse_another_network(self, weights: Layout) -> None:
        """Raise a ConfigError that names the change whose network the parent's weights are not of."""
        wrong = misfits(weights, self.network)
        if not wrong:
            return
        to_blame = [
            *(f"--with {name}" for name in self.added if self._misfit(weights, (name,), ())),
            *(f"--set {key}" for key, value in self.overrides if self._misfit(weights, (), ((key, value),))),
        ]
        if not to_blame:
            raise ConfigError(
                f"{self.parent.run_id}: its weights are of another network than its config gives here:"
                f" {misfit_text(wrong)}; was the code of the model changed since?"
            )
        raise ConfigError(
            f"{', '.join(to_blame)}: gives another network ({misfit_text(wrong)}); a rerun goes on with the parent's"
            f" weights, so names and shapes must stay. Leave it away, or train it from step 0: {self._from_step_0()}"
        )

    def refuse_the_end(self, step: int) -> None:
        """Raise a ConfigError where a training at ``step`` would have nothing left to do."""
        trainer = self.config.trainer
        total = trainer.max_steps or self._num_steps_of_epochs()
        if step < total:
            return
        longer = f"trainer.max_steps={2 * total}" if trainer.max_steps else f"trainer.epochs={2 * trainer.epochs}"
        raise ConfigError(
            f"{self.parent.run_id}: at step {step} of {total} nothing is left to train; say --from STEP for an earlier"
            f" one, or make it longer: --set {longer}"
        )

    def _num_steps_of_epochs(self) -> int:
        batches = TrainingBatches(self.task.dataset("train"), self.config.data, self.seed)
        return build_cadence(self.config, batches.steps_per_epoch).total_steps

    def _misfit(self, weights: Layout, added: tuple[str, ...], overrides: Overrides) -> bool:
        return bool(misfits(weights, self._network(self._branch(added, overrides))))

    def _branch(self, added: tuple[str, ...], overrides: Overrides) -> Branched:
        values = read_run_config(self.parent.config_yaml)
        return branch(self.identity, values, self.parent.config_yaml, added, overrides, self._experiment)

    @cached_property
    def _experiment(self) -> Experiment | None:
        """The model's YAML, which is asked for added fixes alone."""
        return load_experiment(str(self.identity["model"]), self.configs) if self.added else None

    def _task(self, branched: Branched) -> Task:
        return load_task(
            branched.experiment.file.model, branched.resolved.config, self.seed, str(self.parent.config_yaml)
        )

    def _network(self, branched: Branched) -> Layout:
        network = build_network(self._task(branched), branched.resolved.config, self.seed, CPU)
        return layout_of(network.state_dict())

    def _from_step_0(self) -> str:
        variant = self.branched.resolved.variant.name
        pairs = [f"{key}={json.dumps(value)}" for key, value in self.branched.resolved.overrides]
        settings = "".join(f" --set {shlex.quote(pair)}" for pair in pairs)
        of_run = f"--variants {variant} --seeds {self.seed} --scale {self.identity['scale']}{settings}"
        return f"hpcstab submit {self.identity['model']} {of_run}"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
