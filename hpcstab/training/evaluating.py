"""Evaluations of a run: what they write, and when they end it."""

from __future__ import annotations

from typing import Literal

import torch

from hpcstab.stability.finite import nonfinite_names
from hpcstab.training.batchnorm import check_statistics_now
from hpcstab.training.ends import Diverged, NothingValid
from hpcstab.training.evaluation import Evaluation, EvaluationContext, evaluate
from hpcstab.training.precision import autocast
from hpcstab.training.rollback import check_whole_state
from hpcstab.training.training import Training

Weights = Literal["raw", "ema"]
MAX_NAMED = 20
"""One event a failed batch, for so many of an evaluation; each says how many there were."""
_NUMERIC_ERRORS = (ArithmeticError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]


def evaluate_network(training: Training) -> None:
    """Evaluate the weights, and their moving average where there is one.

    ``best``, ``eval`` and the judgement are about the weights themselves: all variants have those, and an average
    looks well for a while after its weights have gone wrong.

    Raises:
        Diverged: parameters are not finite, or no batch was valid (NothingValid, which is one).
        Halted: running statistics had to be repaired once too often.
        Exception: that of the task, where every batch raises the same type and no number is to blame.
    """
    if training.config.stability.batchnorm.check_before_evaluation:
        check_statistics_now(training, "evaluation")
    check_state(training)
    _evaluate(training, "raw")
    ema = training.runner.gate.ema
    if ema is not None:
        with ema.in_place():
            _evaluate(training, "ema")


def check_state(training: Training, after_step: int | None = None) -> None:
    """Non-finite parameters end the run; non-finite buffers alone are an event, and it goes on.

    With guards any non-finite part of the state is a fault that is gone back from. ``after_step``: the device has found
    it non-finite after that step, and it may not be any more.

    Raises:
        Diverged: parameters are not finite; with guards StateFault, which is one.
    """
    if training.guarding is not None:
        check_whole_state(training, after_step)
        return
    step, update, events = training.step, training.update, training.records.events
    note_nonfinite_buffers(training, step)
    parameters = nonfinite_names(training.network.named_parameters())
    if parameters:
        reason = f"{len(parameters)} parameter tensors non-finite, first {parameters[0]}"
        events.write("state_nonfinite", step, update, reason=reason, names=parameters[:20])
        training.records.nonfinite(step, what="parameters")
        raise Diverged(reason)


def note_nonfinite_buffers(training: Training, step: int) -> None:
    """The event of buffers that are not finite, with their names."""
    names = training.ranks.any_of(nonfinite_names(training.runner.gate.buffers.watched().items()))
    if names:
        training.records.events.write("buffers_nonfinite", step, training.update, names=names[:20])
        training.records.nonfinite(step, what="buffers")


def _evaluate(training: Training, weights: Weights) -> None:
    context = EvaluationContext(seed=training.seed, step=training.step, epoch=0, device=training.device)
    with autocast(training.config.precision, training.device):
        evaluation = evaluate(
            training.task,
            training.network,
            context,
            training.records.heartbeat,
            training.config.trainer.max_eval_samples,
        )
    _name_failed(training, evaluation, weights)
    _raise_error_of_code(training, evaluation)
    if evaluation.empty:
        _end_without_evaluation(training, evaluation, weights)
        return
    training.records.evals.append(
        {
            "step": training.step,
            "update": training.update,
            "attempt": training.records.attempt,
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
    training.tensorboard.evaluation(training.step, {f"{prefix}{name}": value for name, value in metrics.items()})
    if weights == "raw":
        training.records.status(eval=metrics)
        training.records.better(training.step, metrics)
    training.records.heartbeat(now=True)


def _name_failed(training: Training, evaluation: Evaluation, weights: Weights) -> None:
    for failed in evaluation.failed[:MAX_NAMED]:
        training.records.events.write(
            "eval_batch_failed",
            training.step,
            training.update,
            batch=failed.index,
            ids=list(failed.ids[:20]),
            reason=failed.reason,
            split="validation",
            weights=weights,
            num_failed=len(evaluation.failed),
        )


def _raise_error_of_code(training: Training, evaluation: Evaluation) -> None:
    """A mistake in the task fails every batch alike, in the evaluation before step 0 already: it is shown as what it
    is. Numbers can make every batch raise too; then it is the run that ends, as diverged."""
    if evaluation.error is None or isinstance(evaluation.error, _NUMERIC_ERRORS):
        return
    if nonfinite_names(training.runner.state_tensors().items()):
        return
    evaluation.error.add_note(f"each of {evaluation.num_batches} validation batches at step {training.step} raised it")
    raise evaluation.error


def _end_without_evaluation(training: Training, evaluation: Evaluation, weights: Weights) -> None:
    training.records.events.write(
        "eval_empty",
        training.step,
        training.update,
        split="validation",
        weights=weights,
        num_batches=evaluation.num_batches,
    )
    if training.step == 0:
        return  # nothing was trained yet: step 0 shows its own loss, and the steps decide
    training.records.nonfinite(training.step, what="evaluation")
    raise NothingValid(
        f"evaluation at step {training.step}: none of {evaluation.num_batches} batches was valid;"
        f" the first: {evaluation.failed[0].reason}"
    )
