"""Evaluations of a run: what they write, and when they end it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from hpcstab.stability.finite import nonfinite_names
from hpcstab.training.batchnorm import check_statistics_now
from hpcstab.training.ends import Diverged, NothingValid
from hpcstab.training.evaluation import Evaluation, EvaluationContext, evaluate
from hpcstab.training.precision import autocast
from hpcstab.training.rollback import check_whole_state

if TYPE_CHECKING:
    from hpcstab.training.trainer import Trainer

Weights = Literal["raw", "ema"]
MAX_NAMED = 20
"""One event a failed batch, for so many of an evaluation; each says how many there were."""
_NUMERIC_ERRORS = (ArithmeticError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


def evaluate_network(trainer: Trainer) -> None:
    """Evaluate the weights, and their moving average where there is one.

    ``best``, ``eval`` and the judgement are about the weights themselves: all variants have those, and an average
    looks well for a while after its weights have gone wrong.

    Raises:
        Diverged: parameters are not finite, or no batch was valid (NothingValid, which is one).
        Halted: running statistics had to be repaired once too often.
        Exception: that of the task, where every batch raises the same type and no number is to blame.
    """
    if trainer.config.stability.batchnorm.check_before_evaluation:
        check_statistics_now(trainer, "evaluation")
    check_state(trainer)
    _evaluate(trainer, "raw")
    ema = trainer.runner.gate.ema
    if ema is not None:
        with ema.in_place():
            _evaluate(trainer, "ema")


def check_state(trainer: Trainer, after_step: int | None = None) -> None:
    """Non-finite parameters end the run; non-finite buffers alone are an event, and it goes on.

    With guards any non-finite part of the state is a fault that is gone back from. ``after_step``: the device has found
    it non-finite after that step, and it may not be any more.

    Raises:
        Diverged: parameters are not finite; with guards StateFault, which is one.
    """
    if trainer.guarding is not None:
        check_whole_state(trainer, after_step)
        return
    step, update, events = trainer.step, trainer.update, trainer.records.events
    buffers = nonfinite_names(trainer.runner.gate.buffers.watched().items())
    if buffers:
        events.write("buffers_nonfinite", step, update, names=buffers[:20])
        trainer.records.nonfinite(step, what="buffers")
    parameters = nonfinite_names(trainer.network.named_parameters())
    if parameters:
        reason = f"{len(parameters)} parameter tensors non-finite, first {parameters[0]}"
        events.write("state_nonfinite", step, update, reason=reason, names=parameters[:20])
        trainer.records.nonfinite(step, what="parameters")
        raise Diverged(reason)


def _evaluate(trainer: Trainer, weights: Weights) -> None:
    context = EvaluationContext(seed=trainer.seed, step=trainer.step, epoch=0, device=trainer.device)
    with autocast(trainer.config.precision, trainer.device):
        evaluation = evaluate(
            trainer.task,
            trainer.network,
            context,
            trainer.records.heartbeat,
            trainer.config.trainer.max_eval_samples,
        )
    _name_failed(trainer, evaluation, weights)
    _raise_error_of_code(trainer, evaluation)
    if evaluation.empty:
        _end_without_evaluation(trainer, evaluation, weights)
        return
    trainer.records.evals.append(
        {
            "step": trainer.step,
            "update": trainer.update,
            "attempt": trainer.records.attempt,
            "split": "validation",
            "weights": weights,
            "num_batches": evaluation.num_batches,
            "num_failed_batches": len(evaluation.failed),
            "seconds": evaluation.seconds,
            **evaluation.metrics,
        }
    )
    prefix = "" if weights == "raw" else f"{weights}/"
    metrics = evaluation.metrics
    trainer.tensorboard.evaluation(trainer.step, {f"{prefix}{name}": value for name, value in metrics.items()})
    if weights == "raw":
        trainer.records.status(eval=metrics)
        trainer.records.better(trainer.step, metrics)
    trainer.records.heartbeat(now=True)


def _name_failed(trainer: Trainer, evaluation: Evaluation, weights: Weights) -> None:
    for failed in evaluation.failed[:MAX_NAMED]:
        trainer.records.events.write(
            "eval_batch_failed",
            trainer.step,
            trainer.update,
            batch=failed.index,
            ids=list(failed.ids[:20]),
            reason=failed.reason,
            split="validation",
            weights=weights,
            num_failed=len(evaluation.failed),
        )


def _raise_error_of_code(trainer: Trainer, evaluation: Evaluation) -> None:
    """A mistake in the task fails every batch alike, in the evaluation before step 0 already: it is shown as what it
    is. Numbers can make every batch raise too; then it is the run that ends, as diverged."""
    if evaluation.error is None or isinstance(evaluation.error, _NUMERIC_ERRORS):
        return
    if nonfinite_names(trainer.runner.state_tensors().items()):
        return
    evaluation.error.add_note(f"each of {evaluation.num_batches} validation batches at step {trainer.step} raised it")
    raise evaluation.error


def _end_without_evaluation(trainer: Trainer, evaluation: Evaluation, weights: Weights) -> None:
    trainer.records.events.write(
        "eval_empty",
        trainer.step,
        trainer.update,
        split="validation",
        weights=weights,
        num_batches=evaluation.num_batches,
    )
    if trainer.step == 0:
        return  # nothing was trained yet: step 0 shows its own loss, and the steps decide
    trainer.records.nonfinite(trainer.step, what="evaluation")
    raise NothingValid(
        f"evaluation at step {trainer.step}: none of {evaluation.num_batches} batches was valid;"
        f" the first: {evaluation.failed[0].reason}"
    )
