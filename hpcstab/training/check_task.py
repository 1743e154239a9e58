"""Checks of a task at the start of a run, with errors that teach its author."""

from __future__ import annotations

from hpcstab.config import RunConfig, leaf_keys
from hpcstab.errors import ConfigError
from hpcstab.task import Task

_METHODS = ("network", "dataset", "loss_terms", "evaluate", "summarize", "baselines", "samples", "data_facts")
_FIELDS = ("metrics", "loss_term_names", "diagnostics", "eval_batch_size")


def check_task(task: Task, config: RunConfig, primary: str) -> None:
    """Refuse a task that the trainer could not train or the report could not judge.

    Raises:
        ConfigError: what is missing, and what the protocol (hpcstab/task.py) asks for.
    """
    name = type(task).__name__
    for attribute in (*_METHODS, *_FIELDS):
        if not hasattr(task, attribute):
            raise ConfigError(f"task {name} has no '{attribute}'; hpcstab.task.Task says what it must be")
    weights = [key for key, _ in leaf_keys(config.losses.weights)]
    if sorted(weights) != sorted(task.loss_term_names):
        raise ConfigError(
            f"task {name} declares the loss terms {', '.join(task.loss_term_names)};"
            f" losses.weights has {', '.join(weights)}"
        )
    metrics = [metric.name for metric in task.metrics]
    if primary not in metrics:
        raise ConfigError(f"compare.primary '{primary}' is no metric of task {name}: {', '.join(metrics)}")
    for split in ("train", "validation"):
        if len(task.dataset(split)) == 0:
            raise ConfigError(f"task {name}: the {split} split is empty")
