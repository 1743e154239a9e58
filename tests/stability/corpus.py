"""Faults with a known creator: operation x site x network, each as somebody might write it.

A case says which operation family, in which module, in which direction must be named. Elementwise faults stand at three
sites: in a module of a perceptron, in a nested module of a convolutional network, and in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.stability.random_state import seed_all, take_random_state
from hpcstab.stability.replay.failing_step import Batch, FailingStep, Precision

NUM_SAMPLES = 6
BAD_SAMPLE = 2
Loss = Callable[[nn.Module, Any], Tensor]
INF = math.inf


@dataclass(frozen=True)
class Case:
    """``family``: of the operation as the user wrote it, i.e. of a backward one that which it differentiates."""

    name: str
    make: Callable[[], tuple[nn.Module, Any, Loss]]
    family: str
    module: str
    direction: str = "forward"
    kind: str = "created"
    verdict: str = "layer"
    dtype: str = "fp32"
    loss_scale: float = 1.0
    prepare: Callable[[FailingStep], None] | None = None
    samples: tuple[int, ...] | None = None


class Fault(nn.Module):
    """A module whose forward is the fault."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, inputs: Tensor) -> Tensor:
        return self.function(inputs)


def put(values: Tensor, value: float) -> Tensor:
    """One entry of the bad sample becomes ``value``; a gradient that is not finite there comes through as NaN."""
    keep, added = torch.ones_like(values), torch.zeros_like(values)
    keep.view(len(values), -1)[BAD_SAMPLE, 0] = 0.0
    added.view(len(values), -1)[BAD_SAMPLE, 0] = value
    return values * keep + added


def positive(values: Tensor) -> Tensor:
    """In [0.2, 0.8]: inside the domain of all functions that are used here."""
    return 0.5 + 0.3 * values.tanh()


def perceptron(fault: Callable[[Tensor], Tensor] | None = None) -> nn.Sequential:
    middle = [Fault(fault)] if fault else []
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), *middle, nn.Linear(5, 3))


class Convolutional(nn.Module):
    """(B, 1, 6, 6) -> (B, 3), with the fault two levels down."""

    def __init__(self, fault: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        body = {
            "conv": nn.Conv2d(1, 4, 3),
            "relu": nn.ReLU(inplace=True),
            "norm": nn.BatchNorm2d(4),
            "fault": Fault(fault),
        }
        self.body = nn.Sequential()
        for name, layer in body.items():
            self.body.add_module(name, layer)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.body(images)).flatten(1))


def vectors() -> tuple[Tensor, Tensor]:
    return torch.randn(NUM_SAMPLES, 4), torch.randn(NUM_SAMPLES, 3)


def images() -> tuple[Tensor, Tensor]:
    return torch.randn(NUM_SAMPLES, 1, 6, 6), torch.randn(NUM_SAMPLES, 3)


def squared(network: nn.Module, batch: Any) -> Tensor:
    return (network(batch[0]) - batch[1]).square().mean()


class Doubled(torch.autograd.Function):
    """Right forward, wrong backward: it divides by its input."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return gradient / values


class LogInside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def in_place(values: Tensor) -> Tensor:
    copied = values.clone()
    copied[BAD_SAMPLE] = 0.0
    return copied.log_()


def foreach(values: Tensor) -> Tensor:
    first, second = torch._foreach_log([put(positive(values), 0.0), positive(values)])
    return first + second


def masked_log(values: Tensor) -> Tensor:
    """The mask discards log(0) in the forward; in the backward 0 / 0 comes through."""
    at_zero = put(positive(values), 0.0)
    return torch.where(at_zero > 0, at_zero.log(), 0.0)


def masked_exp(values: Tensor) -> Tensor:
    """The mask discards inf in the forward; in the backward it becomes 0 * inf."""
    large = put(values, 200.0)
    return torch.where(large < 50, large.exp(), 0.0)


def masked_sqrt(values: Tensor) -> Tensor:
    negative = put(positive(values), -1.0)
    return torch.where(negative > 0, negative.sqrt(), 0.0)


def all_masked(values: Tensor) -> Tensor:
    rows = torch.zeros(values.shape, dtype=torch.bool)
    rows[BAD_SAMPLE] = True
    return values.masked_fill(rows, -INF)


def ones_at(values: Tensor, value: float) -> Tensor:
    return put(torch.ones_like(values), value)


ELEMENTWISE: dict[str, tuple[Callable[[Tensor], Tensor], str, str]] = {
    "log of zero": (lambda h: put(positive(h), 0.0).log(), "log", "forward"),
    "log of a negative": (lambda h: put(positive(h), -1.0).log(), "log", "forward"),
    "log2 of zero": (lambda h: put(positive(h), 0.0).log2(), "log2", "forward"),
    "log10 of zero": (lambda h: put(positive(h), 0.0).log10(), "log10", "forward"),
    "log1p of -1": (lambda h: put(positive(h), -1.0).log1p(), "log1p", "forward"),
    "sqrt of a negative": (lambda h: put(positive(h), -0.5).sqrt(), "sqrt", "forward"),
    "rsqrt of zero": (lambda h: put(positive(h), 0.0).rsqrt(), "rsqrt", "forward"),
    "rsqrt of a negative": (lambda h: put(positive(h), -0.1).rsqrt(), "rsqrt", "forward"),
    "zero by zero": (lambda h: put(h, 0.0) / put(positive(h), 0.0), "div", "forward"),
    "one by zero": (lambda h: 1 / put(positive(h), 0.0), "reciprocal", "forward"),
    "exp overflow": (lambda h: put(h, 100.0).exp(), "exp", "forward"),
    "expm1 overflow": (lambda h: put(h, 100.0).expm1(), "expm1", "forward"),
    "sinh overflow": (lambda h: put(h, 100.0).sinh(), "sinh", "forward"),
    "hand-made softplus": (lambda h: (1 + put(h, 100.0).exp()).log(), "exp", "forward"),
    "power of a negative": (lambda h: put(positive(h), -0.5).pow(0.5), "sqrt|pow", "forward"),
    "negative power of zero": (lambda h: put(positive(h), 0.0) ** -1.5, "pow", "forward"),
    "power overflow": (lambda h: put(h, 1e20).pow(3), "pow", "forward"),
    "acos outside": (lambda h: put(h.tanh(), 1.5).acos(), "acos", "forward"),
    "asin outside": (lambda h: put(h.tanh(), -1.5).asin(), "asin", "forward"),
    "atanh of one": (lambda h: put(positive(h), 1.0).atanh(), "atanh", "forward"),
    "acosh below one": (lambda h: put(1 + positive(h), 0.5).acosh(), "acosh", "forward"),
    "logit of one": (lambda h: put(positive(h), 1.0).logit(), "logit", "forward"),
    "erfinv of one": (lambda h: put(h.tanh() / 2, 1.0).erfinv(), "erfinv", "forward"),
    "lgamma at a pole": (lambda h: put(positive(h), 0.0).lgamma(), "lgamma", "forward"),
    "square overflow": (lambda h: put(h, 1e25).square(), "pow|square", "forward"),
    "product overflow": (lambda h: put(h, 1e30) * put(h, 1e30), "mul", "forward"),
    "clamp to zero, then log": (lambda h: put(positive(h), -3.0).clamp(min=0).log(), "log", "forward"),
    "in-place log": (in_place, "log", "forward"),
    "foreach log": (foreach, "_foreach_log", "forward"),
    "custom function, forward": (lambda h: LogInside.apply(put(positive(h), 0.0)), "log", "forward"),
    "custom function, backward": (lambda h: Doubled.apply(put(h, 0.0)), "mul", "backward"),
    "sqrt at zero, backward": (lambda h: put(positive(h), 0.0).sqrt(), "sqrt", "backward"),
    "pow 0.3 at zero, backward": (lambda h: put(positive(h), 0.0).pow(0.3), "pow", "backward"),
    "asin at one, backward": (lambda h: put(h.tanh() / 2, 1.0).asin(), "asin", "backward"),
    "masked log, backward": (masked_log, "log", "backward"),
    "masked exp, hidden in the forward": (masked_exp, "exp", "forward"),
    "masked sqrt, hidden in the forward": (masked_sqrt, "sqrt", "forward"),
    "sum overflow": (
        lambda h: h + put(h, 3e38).flatten(1).sum(1).abs().add(3e38).view(-1, *[1] * (h.ndim - 1)),
        "add",
        "forward",
    ),
    "zero times a constant inf": (lambda h: put(h, 0.0) * ones_at(h, INF), "mul", "forward"),
    "inf minus inf": (lambda h: all_masked(h) - all_masked(h), "sub", "forward"),
}


def _at_three_sites(name: str) -> list[Case]:
    function, family, direction = ELEMENTWISE[name]

    def loss(network: nn.Module, batch: Any) -> Tensor:
        return (function(network(batch[0])) - batch[1]).square().mean()

    sites = [
        Case(f"{name}, in a module", lambda: (perceptron(function), vectors(), squared), family, "2", direction),
        Case(
            f"{name}, in a nested module",
            lambda: (Convolutional(function), images(), squared),
            family,
            "body.fault",
            direction,
        ),
        Case(f"{name}, in the loss", lambda: (perceptron(), vectors(), loss), family, "", direction),
    ]
    return [replace(case, verdict="*") for case in sites]


def in_loss(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], tuple[nn.Module, Any, Loss]]:
    return lambda: (perceptron(), vectors(), lambda network, batch: change(network(batch[0]), batch[1]))


def in_middle(fault: Callable[[Tensor], Tensor]) -> Callable[[], tuple[nn.Module, Any, Loss]]:
    return lambda: (perceptron(fault), vectors(), squared)


def layers(*modules: nn.Module) -> Callable[[], tuple[nn.Module, Any, Loss]]:
    return lambda: (nn.Sequential(nn.Linear(4, 5), *modules, nn.Linear(5, 3)), vectors(), squared)


def constant(values: Tensor) -> Tensor:
    return values * 0 + 1.0


class Scaled(nn.Module):
    """Divides by a learned scale that has come near zero."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((), scale))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs / self.scale


class Attention(nn.Module):
    """(B, 4) as one token of four features each -> (B, 3); ``mask`` may leave a row nothing to look at."""

    def __init__(self, mask: Callable[[Tensor], Tensor], scale: float = 1.0) -> None:
        super().__init__()
        self.mask, self.scale = mask, scale
        self.queries, self.keys, self.head = nn.Linear(1, 8), nn.Linear(1, 8), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.unsqueeze(-1)
        scores = (self.queries(tokens) * self.scale) @ (self.keys(tokens) * self.scale).transpose(1, 2)
        weights = torch.softmax(scores + self.mask(scores), dim=-1)
        return self.head((weights @ tokens).squeeze(-1))


def no_keys(scores: Tensor) -> Tensor:
    mask = torch.zeros_like(scores)
    mask[BAD_SAMPLE, 1] = -INF
    return mask


def causal(scores: Tensor) -> Tensor:
    return torch.full(scores.shape[1:], -INF).triu(1)


def poisoned(batch_of: Callable[[], tuple[Tensor, Tensor]], which: int, value: float) -> Callable[[], Any]:
    def make() -> Any:
        batch = batch_of()
        batch[which][BAD_SAMPLE, 0] = value
        return perceptron(), batch, squared

    return make


def poison_parameter(step: FailingStep) -> None:
    dict(step.network.named_parameters())["2.weight"].data[0, 0] = math.nan
    step.__post_init__()


def poison_buffer(step: FailingStep) -> None:
    step.network.get_buffer("1.scale")[0] = math.nan
    step.__post_init__()


def poison_moment(step: FailingStep) -> None:
    parameter = dict(step.network.named_parameters())["0.weight"]
    parameter.grad = torch.zeros_like(parameter)
    step.optimizer.step()
    step.optimizer.state[parameter]["exp_avg"][0, 0] = math.inf
    step.__post_init__()


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(5))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


def unwritten(values: Tensor) -> Tensor:
    kept = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # makes unwritten memory NaN, which it otherwise is by chance
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        memory = torch.empty_like(values)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = kept
    memory[: len(values) // 2] = 0.0
    return values + memory


def half(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda values: function(values.half()).float()


def half_sum(values: Tensor) -> Tensor:
    return values + (put(positive(values), 6e4).half() + put(positive(values), 6e4).half()).float()


SPECIAL = [
    Case(
        "own norm of zero, backward",
        in_middle(lambda h: (h * 0).square().sum(1, keepdim=True).sqrt() + h),
        "sqrt",
        "2",
        "backward",
    ),
    Case("own norm of zero, forward", in_middle(lambda h: h * 0 / (h * 0).norm(dim=1, keepdim=True)), "div", "2"),
    Case("std of one element", in_loss(lambda out, y: out[:1, :1].std() + out.sum()), "std", ""),
    Case("var of one element", in_loss(lambda out, y: out[:1, 0].var() + out.sum()), "var", ""),
    Case(
        "own std of equal values, backward",
        in_middle(lambda h: h + constant(h).var(dim=1, keepdim=True).sqrt()),
        "sqrt",
        "2",
        "backward",
    ),
    Case("mean of an empty selection", in_loss(lambda out, y: (out - y)[y > 100].mean()), "mean", ""),
    Case(
        "cosine similarity without eps",
        in_loss(lambda out, y: functional.cosine_similarity(out * 0, y, eps=0.0).mean()),
        "div",
        "",
    ),
    Case(
        "normalise without eps", in_loss(lambda out, y: (functional.normalize(out * 0, eps=0.0) * y).sum()), "div", ""
    ),
    Case("logsumexp of nothing", in_loss(lambda out, y: all_masked(out).logsumexp(1).mean()), "logsumexp", ""),
    Case("softmax of nothing", in_loss(lambda out, y: (all_masked(out).softmax(1) * y).sum()), "_softmax", ""),
    Case(
        "log_softmax of nothing",
        in_loss(lambda out, y: all_masked(out).log_softmax(1)[:, 0].mean()),
        "_log_softmax",
        "",
    ),
    Case(
        "cross-entropy of a masked target",
        in_loss(
            lambda out, y: functional.cross_entropy(out.masked_fill(torch.eye(6, 3) > 0, -INF), torch.arange(6) % 3)
        ),
        "nll_loss_forward",
        "",
    ),
    Case(
        "cross-entropy of masked rows",
        in_loss(lambda out, y: functional.cross_entropy(all_masked(out), torch.zeros(6, dtype=torch.long))),
        "_log_softmax",
        "",
    ),
    Case(
        "own binary cross-entropy",
        in_loss(lambda out, y: -((out * 200).sigmoid().round().log() * (y > 0)).mean()),
        "log",
        "",
    ),
    Case(
        "own KL of one-hot",
        in_loss(lambda out, y: ((y > 0).float() * ((y > 0).float().log() - out.log_softmax(1))).mean()),
        "log",
        "",
    ),
    Case("poisson of a large rate", in_loss(lambda out, y: functional.poisson_nll_loss(put(out, 200.0), y)), "exp", ""),
    Case(
        "gaussian of zero variance",
        in_loss(lambda out, y: (0.5 * (out - y).square() / (out * 0) + (out * 0).log()).mean()),
        "div",
        "",
    ),
    Case(
        "hypot at the origin, backward",
        in_middle(lambda h: torch.hypot(put(h, 0.0), put(h, 0.0))),
        "hypot",
        "2",
        "backward",
    ),
    Case("layer norm without eps", layers(Fault(constant), nn.LayerNorm(5, eps=0.0)), "native_layer_norm", "2"),
    Case(
        "own batch norm of a constant channel",
        in_middle(lambda h: (constant(h) - 1) / constant(h).var(0).sqrt()),
        "div",
        "2",
    ),
    Case("group norm without eps", layers(Fault(constant), nn.GroupNorm(1, 5, eps=0.0)), "native_group_norm", "2"),
    Case(
        "batch norm of huge values",
        layers(Fault(lambda h: h * 1e30), nn.BatchNorm1d(5)),
        "native_batch_norm",
        "2",
        verdict="*",
    ),
    Case("attention with a row of no keys", lambda: (Attention(no_keys), vectors(), squared), "_softmax", "(network)"),
    Case(
        "attention scores overflow",
        lambda: (Attention(causal, 1e20), vectors(), squared),
        "bmm",
        "(network)",
        verdict="*",
    ),
    Case("division by a learned scale near zero", layers(Scaled(1e-40)), "div", "1"),
    Case("division by a learned scale of zero", layers(Scaled(0.0)), "div", "1"),
    Case(
        "convolution overflow",
        lambda: (
            nn.Sequential(nn.Conv2d(1, 2, 3), Fault(lambda h: h * 1e38 * 10), nn.Conv2d(2, 3, 4)),
            images(),
            lambda network, batch: network(batch[0]).mean(),
        ),
        "mul",
        "1",
        verdict="*",
    ),
    Case(
        "matrix product overflow",
        layers(Fault(lambda h: (h * 1e20) @ (torch.ones(5, 5) * 1e20))),
        "mm",
        "1",
        verdict="*",
    ),
    Case("cumsum overflow", in_middle(lambda h: (positive(h) * 3e38).cumsum(1)), "cumsum", "2", verdict="*"),
    Case("cumprod overflow", in_middle(lambda h: (positive(h) * 1e20).cumprod(1)), "cumprod", "2", verdict="*"),
    Case("prod overflow", in_loss(lambda out, y: (positive(out) * 1e20).prod()), "prod", "", verdict="*"),
    Case("sum overflow by reduction", in_loss(lambda out, y: (positive(out) * 3e38).sum()), "sum", "", verdict="*"),
    Case("var overflow", in_loss(lambda out, y: (out * 1e25).var()), "var", "", verdict="*"),
    Case("mse overflow", in_loss(lambda out, y: functional.mse_loss(out * 1e25, y)), "mse_loss", "", verdict="*"),
    Case(
        "norm overflow in the loss", in_loss(lambda out, y: (out * 1e25).square().sum().sqrt()), "pow", "", verdict="*"
    ),
    Case(
        "determinant of a singular matrix",
        in_loss(lambda out, y: (out.T @ out * 0).logdet() + out.sum()),
        "_linalg_slogdet|log",
        "",
    ),
    Case(
        "inverse of a singular matrix",
        in_loss(lambda out, y: torch.linalg.inv_ex(out.T @ out * 0)[0].sum()),
        "linalg_inv_ex",
        "",
        verdict="*",
    ),
    Case("gathered before the log", in_loss(lambda out, y: put(positive(out), 0.0)[[2, 1]].log().sum()), "log", ""),
    Case(
        "pooled after the exp",
        lambda: (nn.Sequential(Convolutional(lambda h: put(h, 100.0).exp()), nn.Identity()), images(), squared),
        "exp",
        "0.body.fault",
        verdict="*",
    ),
    Case("memory that nobody wrote", in_middle(unwritten), "empty_like", "2", kind="uninitialised"),
    Case("fp16 cast", in_middle(lambda h: put(h, 1e5).half().float()), "_to_copy", "2", verdict="*"),
    Case("fp16 product", in_middle(half(lambda h: put(h, 300.0) * 300)), "mul", "2", verdict="*"),
    Case("fp16 sum", in_middle(half_sum), "add", "2", verdict="*"),
    Case(
        "fp16 matrix product",
        in_middle(half(lambda h: (h * 0 + 300) @ torch.full((5, 5), 300.0).half())),
        "mm",
        "2",
        verdict="*",
    ),
    Case("fp16 exp", in_middle(half(lambda h: put(h, 12.0).exp())), "exp", "2", verdict="*"),
    Case("bf16 cast", in_middle(lambda h: put(h, 3.4e38).bfloat16().float()), "_to_copy", "2", verdict="*"),
    Case("bf16 log", in_middle(lambda h: put(positive(h), 0.0).bfloat16().log().float()), "log", "2"),
    Case(
        "fp16 autocast linear",
        lambda: (nn.Sequential(nn.Linear(4, 5), Fault(lambda h: h * 0 + 3e4), Wide()), vectors(), squared),
        "addmm",
        "2.linear",
        dtype="fp16",
        verdict="precision",
    ),
    Case(
        "fp16 autocast cast",
        lambda: (
            nn.Sequential(nn.Linear(4, 5), Fault(lambda h: put(h.float(), 1e5)), Wide()),
            vectors(),
            lambda network, batch: (network(batch[0]) * 1e-3 - batch[1]).square().mean(),
        ),
        "_to_copy",
        "2.linear",
        dtype="fp16",
        verdict="precision",
    ),
    Case(
        "fp16 loss scale, backward",
        lambda: (perceptron(), vectors(), squared),
        "sub",
        "",
        "backward",
        dtype="fp16",
        loss_scale=2.0**24,
        verdict="precision",
    ),
    Case("huge input", poisoned(vectors, 0, 1e30), "pow|square", "", verdict="data", samples=(BAD_SAMPLE,)),
    Case(
        "NaN input", poisoned(vectors, 0, math.nan), "batch[0]", "", kind="input", verdict="data", samples=(BAD_SAMPLE,)
    ),
    Case("inf input", poisoned(vectors, 0, INF), "batch[0]", "", kind="input", verdict="data", samples=(BAD_SAMPLE,)),
    Case(
        "NaN target",
        poisoned(vectors, 1, math.nan),
        "batch[1]",
        "",
        kind="input",
        verdict="data",
        samples=(BAD_SAMPLE,),
    ),
    Case(
        "NaN parameter",
        in_loss(lambda out, y: (out - y).square().mean()),
        "2.weight",
        "",
        kind="state",
        prepare=poison_parameter,
        verdict="state",
    ),
    Case("NaN buffer", layers(Buffered()), "1.scale", "", kind="state", prepare=poison_buffer, verdict="state"),
    Case(
        "inf moment",
        in_loss(lambda out, y: (out - y).square().mean()),
        "",
        "",
        kind="state",
        prepare=poison_moment,
        verdict="state",
    ),
    Case(
        "gradients too large for their norm",
        in_loss(lambda out, y: out.sum() * 1e25),
        "",
        "",
        kind="norm_overflow",
        direction="backward",
        verdict="*",
    ),
]


class Wide(nn.Module):
    """A linear layer whose sums are large."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        nn.init.constant_(self.linear.weight, 1.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.linear(inputs).float()


CASES = [case for name in ELEMENTWISE for case in _at_three_sites(name)] + SPECIAL


def step_of(case: Case) -> FailingStep:
    """The case as a step that can be run."""
    seed_all(3)
    network, batch, loss_function = case.make()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def gradients(batch: Batch, *, precision: Precision, term: str | None) -> tuple[Tensor, dict[str, Tensor]]:
        low = case.dtype != "fp32" and precision == "recorded"
        with torch.autocast("cpu", dtype=torch.float16, enabled=low):
            loss = loss_function(network, batch)
        (loss * (case.loss_scale if low else 1.0)).backward()
        return loss, {}

    step = FailingStep(
        network,
        optimizer,
        batch,
        gradients,
        take_random_state(),
        tuple(f"item{index}" for index in range(NUM_SAMPLES)),
        dtype=case.dtype,
        loss_scale=case.loss_scale,
    )
    if case.prepare:
        case.prepare(step)
    return step
