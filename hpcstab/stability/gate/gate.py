"""The gate: on the device, in this step, may the update be applied?

One decision covers all that a step changes. It costs a healthy step no wait for the device and no pass over the
gradients beyond the norm that clipping needs: fused optimizers read ``found_inf`` and ``grad_scale`` on the
device, so that skipping and clipping happen inside their own kernel.

The latch is sticky. After a bad step the device refuses all updates until the host has looked, so that whenever it
looks, parameters and optimizer state are bitwise those of the failing step.

Source: the ``found_inf`` protocol of torch.amp.GradScaler; a multiplication by zero is no skip (0 x NaN = NaN).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpcstab.errors import ConfigError
from hpcstab.stability.gate.buffers import BufferRing
from hpcstab.stability.gate.check_input import (
    can_skip_itself,
    check_loss,
    check_stepped,
    checked_parameters,
    norm_of,
    num_stepped,
)
from hpcstab.stability.gate.clipping import Clipping
from hpcstab.stability.gate.decision import Decision
from hpcstab.stability.gate.ema import Ema
from hpcstab.stability.gate.loss_scale import LossScale

GateMode = Literal["open", "step_only", "closed"]
LAG = 2
"""So many steps later the host looks."""


class Gate:
    """Clip, decide and step, for all optimizers of a training at once.

    Args:
        network: its parameters are measured, frozen ones from when they are not; its buffers are kept.
        optimizers: fused ones are skipped on the device; for others the host asks the device in every step, which
            gives the same result and costs a wait.
        mode: ``open`` applies every update, ``step_only`` refuses the optimizer step of a bad step (as GradScaler
            and most loops do: buffers keep what they became), ``closed`` latches and lets nothing of it stay.
        max_grad_norm: gradients are clipped to it; None never clips.
        ring_size: steps that can be in flight.
        agree: makes one flag of the ranks' flags (the largest); None on one rank.

    Attributes:
        armed: whether a bad step latches. Open gates are armed until their first bad step was looked at.
        latch: 0-d; 1 from a bad step on until the host has looked.
        limits: the largest loss and gradient norm that are not bad, on the device; None before :meth:`limit`.

    Raises:
        ConfigError: no parameters, on several devices, or sharded ones; an optimizer without a ``step()`` to be
            skipped, or one that steps what the network does not have.
    """

    def __init__(  # noqa: PLR0913 - one decision over many parts
        self,
        network: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        mode: GateMode,
        max_grad_norm: float | None = None,
        *,
        ring_size: int = LAG + 1,
        loss_scale: LossScale | None = None,
        ema: Ema | None = None,
        agree: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._parameters = checked_parameters(network)
        self._asks_device = {id(optimizer): can_skip_itself(optimizer) for optimizer in optimizers}
        self._optimizers = list(optimizers)
        check_stepped(self._optimizers, self._parameters)
        self._num_stepped = num_stepped(self._optimizers)
        self._agree = agree
        self._is_open_for: int | None = None
        self.mode = mode
        self.armed = True
        self.buffers = BufferRing(network, ring_size)
        self.loss_scale = loss_scale
        self.ema = ema
        device = self._parameters[0].device
        self._clipping = Clipping(max_grad_norm, device)
        self._zero, self._one = torch.zeros((), device=device), torch.ones((), device=device)
        largest_buffers = tuple(f"largest_buffer_{index}" for index, _ in enumerate(self.buffers.largest()))
        self._names = ("loss", "grad_norm", *largest_buffers, "clip_divisor", "bad")
        # all figures in one piece of memory, and the latch behind them: one check, one copy to the host
        self._figures = torch.zeros(len(self._names), device=device)
        self._seen = self._figures[:-2]
        self._judged = self._figures[:2] if mode == "step_only" else self._seen
        self._clip_divisor = self._figures[-2].fill_(1.0)
        self.latch = self._figures[-1]
        self.limits: Tensor | None = None
        self._infinity = torch.full((), math.inf, device=device)
        self._is_held = False

    def limit(self, *, loss: float = math.inf, grad_norm: float = math.inf) -> None:
        """From now on a step with a larger loss or gradient norm is bad too, not only one that is not finite."""
        if self.limits is None:
            self.limits = torch.full_like(self._judged, math.inf)
        self.limits[0].fill_(loss)
        self.limits[1].fill_(grad_norm)

    def begin(self, step: int) -> None:
        """Before the first forward pass of a step."""
        self._is_open_for = step
        self.buffers.keep(step)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to differentiate: times the loss scale where there is one."""
        return loss if self.loss_scale is None else loss * self.loss_scale.value

    @torch.no_grad()
    def step(self, loss: Tensor) -> Decision:
        """After the backward pass: decide, and step all optimizers or none.

        Args:
            loss: of the step, 0-d, without the loss scale; summed over micro-batches.

        Raises:
            ConfigError: not begun, or called twice; the loss is no scalar; no parameter has a gradient; the model or
                an optimizer is another one than at first.
        """
        gradients = [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]
        self._check(loss, gradients)
        norm = norm_of(gradients)
        if self.loss_scale is not None:
            norm = norm / self.loss_scale.value
        clip = self._clipping.divisor(norm, out=self._clip_divisor)
        self._judge(loss.detach(), norm)
        refused, refuses = self._refusal()
        divisor = self._divisor(clip)
        for optimizer in self._optimizers:
            self._step(optimizer, divisor, refused)
        if self.loss_scale is not None:
            # what the latch refuses runs again: only a refusal that stays may change the scale
            self.loss_scale.after_step(refused, backs_off=not self.armed)
        if self.ema is not None:
            self.ema.update(refused if self.armed or self.mode == "closed" else self._zero)
        return Decision(self._figures, self._names, refused, refuses)

    def release(self, step: int, *, armed: bool) -> None:
        """The host has looked: buffers are those before ``step`` again, and updates are applied again.

        ``armed`` False: an open gate has shown its first bad step and lets the next ones pass.
        """
        self.buffers.put_back(step)
        self.latch.zero_()
        self.armed = armed

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within the block no update is applied, and a step is called bad for itself alone; release the gate after."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def _check(self, loss: Tensor, gradients: list[Tensor]) -> None:
        if self._is_open_for is None:
            raise ConfigError("the gate's step was called twice for one batch, or before begin(): call it once a batch")
        check_loss(loss, gradients)
        if self._parameters[0].device != self.latch.device:
            raise ConfigError(
                f"the model was moved from {self.latch.device} to {self._parameters[0].device} after the gate was"
                " made: move it before"
            )
        if num_stepped(self._optimizers) != self._num_stepped:
            raise ConfigError("an optimizer was given more parameters after the gate was made: give them to it before")
        self._is_open_for = None

    def _judge(self, loss: Tensor, norm: Tensor) -> None:
        """Note what was seen, and whether it is bad: torch's own check of a loss scale, which sets a flag and never
        takes it back, so that the flag of an armed gate is its latch.

        step_only looks at loss and gradients alone, as the loops do whose form it is: one that looked at buffers would
        skip for ever once one is NaN.
        """
        torch.stack([value.float() for value in (loss, norm, *self.buffers.largest())], out=self._seen)
        if not self.armed or self._is_held:
            self.latch.zero_()
        judged = self._judged
        if self.limits is not None:
            judged = torch.where(judged > self.limits, self._infinity, judged)
        torch._amp_foreach_non_finite_check_and_unscale_([judged], self.latch, self._one)
        if self._agree is not None:
            self._agree(self.latch)

    def _refusal(self) -> tuple[Tensor, bool]:
        """(whether the update is left out, whether it would be where the step is bad)"""
        if self._is_held:
            return self._one, True
        if self.armed or self.mode != "open":
            return self.latch, True
        return self._zero, False

    def _divisor(self, clip: Tensor | None) -> Tensor | None:
        """What the optimizers divide gradients by; None for nothing."""
        if self.loss_scale is None:
            return clip
        return self.loss_scale.value if clip is None else self.loss_scale.value * clip

    def _step(self, optimizer: Any, divisor: Tensor | None, refused: Tensor) -> None:
        if not self._asks_device[id(optimizer)]:
            self._step_if_told(optimizer, divisor, refused)
            return
        optimizer.found_inf = refused
        if divisor is not None:
            optimizer.grad_scale = divisor
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
            if divisor is not None:
                del optimizer.grad_scale

    def _step_if_told(self, optimizer: torch.optim.Optimizer, divisor: Tensor | None, refused: Tensor) -> None:
        """For optimizers that cannot skip on the device: the host waits for the decision."""
        if bool(refused):
            return
        if divisor is not None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_div_(gradients, divisor)
        optimizer.step()
