"""Each rule with what it is for, and with the healthy checkpoint that it must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.doctor import diagnose
from tests.doctor.making import saved, tensors_of, trained

State = dict[str, Any]


def layer(mean: Tensor, variance: Tensor, count: int = 5) -> State:
    return {
        "bn.weight": torch.ones_like(mean),
        "bn.running_mean": mean,
        "bn.running_var": variance,
        "bn.num_batches_tracked": torch.tensor(count),
    }


def with_one(value: float, dtype: torch.dtype = torch.float32, size: int = 100) -> Tensor:
    tensor = torch.linspace(-1, 1, size).to(dtype)
    tensor[size // 2] = value
    return tensor.view(10, -1)


def beside(**tensors: Tensor) -> State:
    """With two ordinary layers around them."""
    return {"first.weight": torch.randn(4, 4), **tensors, "last.weight": torch.randn(4, 4)}


SICK: dict[str, tuple[State, str, str]] = {
    "nan": (beside(w=with_one(torch.nan)), "nan", "w"),
    "inf": (beside(w=with_one(torch.inf)), "inf", "w"),
    "one -inf in many": (beside(w=with_one(-torch.inf)), "inf", "w"),
    "one -inf of a few": (beside(b=torch.tensor([0.1, -torch.inf, 0.2])), "inf", "b"),
    "one -inf in zeros": (beside(b=torch.tensor([0.0, -torch.inf, 0.0])), "inf", "b"),
    "all nan": (beside(w=torch.full((3, 3), torch.nan)), "nan", "w"),
    "0-d": (beside(logit_scale=torch.tensor(torch.nan)), "nan", "logit_scale"),
    "fp64": (beside(w=with_one(torch.nan, torch.float64)), "nan", "w"),
    "bf16": (beside(w=with_one(torch.inf, torch.bfloat16)), "inf", "w"),
    "variance below zero": (
        layer(torch.zeros(3), torch.tensor([1.0, -1e-3, 2.0])),
        "negative_variance",
        "bn.running_var",
    ),
    "variance zero throughout": (layer(torch.zeros(3), torch.zeros(3)), "zero_variance", "bn.running_var"),
    "huge variance": (layer(torch.zeros(3), torch.tensor([1.0, 2.0, 1e9])), "absurd", "bn.running_var"),
    "huge mean": (layer(torch.tensor([1.0, -1e12, 0.5]), torch.ones(3)), "absurd", "bn.running_mean"),
    "bad count": (layer(torch.zeros(3), torch.ones(3), -(1 << 62)), "bad_count", "bn.num_batches_tracked"),
    "exponent bit": (beside(w=with_one(1.3e37)), "absurd", "w"),
    "exponent bit of a bf16": (beside(w=with_one(-2e38, torch.bfloat16)), "absurd", "w"),
    "far beyond its siblings": (beside(w=with_one(3e9)), "absurd", "w"),
    "edge of fp16": (beside(w=with_one(60000.0, torch.float16)), "at_the_edge", "w"),
    "average": ({"net": beside(), "ema": beside(w=with_one(torch.nan))}, "nan", "ema.w"),
    "scaler": ({"net": beside(), "amp": {**trained()["scaler"], "scale": float("nan")}}, "bad_number", "amp.scale"),
    "scaler at zero": ({"net": beside(), "amp": {**trained()["scaler"], "scale": 0.0}}, "bad_number", "amp.scale"),
}


def optimizer(name: str, value: float) -> State:
    state = trained()
    state["optimizer"]["state"][2][name].view(-1)[0] = value
    return state


for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
    SICK[f"nan in {name}"] = (optimizer(name, torch.nan), "nan", f"optimizer.state.2.{name}")
SICK["second moment below zero"] = (optimizer("exp_avg_sq", -1.0), "negative_moment", "optimizer.state.2.exp_avg_sq")
SICK["step below zero"] = (optimizer("step", -1.0), "bad_count", "optimizer.state.2.step")


@pytest.mark.parametrize("case", SICK)
def test_what_is_sick(tmp_path: Path, case: str) -> None:
    state, code, name = SICK[case]
    diagnosis = diagnose(saved(tmp_path, state))
    assert [(finding.code, finding.name) for finding in diagnosis.sick] == [(code, name)]
    assert diagnosis.exit_code == 1


def test_counts_and_places(tmp_path: Path) -> None:
    weight = torch.zeros(4, 5)
    weight[1, 2:] = torch.nan
    weight[3, 0], weight[3, 4] = torch.inf, -torch.inf
    (found,) = diagnose(saved(tmp_path, {"w": weight})).sick
    assert (found.num_nan, found.num_inf, found.num_values, found.first_index) == (3, 2, 20, (1, 2))
    assert found.text == "3 NaN, 1 +Inf, 1 -Inf of 20"


def test_every_poisoned_tensor_of_several_pieces(tmp_path: Path) -> None:
    """Larger than a piece of the scan, the bad values at its ends and across the border of two pieces."""
    weight = torch.zeros(3 << 18)
    places = [0, (1 << 18) - 1, 1 << 18, (3 << 18) - 1]
    weight[places] = torch.nan
    (found,) = diagnose(saved(tmp_path, {"w": weight, "v": torch.zeros(3)})).sick
    assert (found.num_nan, found.num_values, found.first_index) == (4, 3 << 18, (0,))


def mask(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((8, 8), value, dtype=dtype).triu(1)


HEALTHY: dict[str, Callable[[], Any]] = {
    "a training": trained,
    "a state dict": lambda: trained()["model"],
    "causal mask": lambda: beside(mask=mask(-torch.inf)),
    "mask of the smallest fp32": lambda: beside(mask=mask(torch.finfo(torch.float32).min)),
    "mask of the smallest fp16": lambda: beside(mask=mask(torch.finfo(torch.float16).min, torch.float16)),
    "constant of a mask": lambda: beside(masked_bias=torch.tensor(-1e9), other=torch.tensor(-1e30)),
    "ALiBi": lambda: beside(bias=mask(-torch.inf) + torch.arange(8.0)),
    "log of a prior": lambda: beside(prior=torch.tensor([0.0, 0.5, 0.5]).log()),
    "fresh observer": lambda: {
        **beside(),
        "fq.min_val": torch.tensor(torch.inf),
        "fq.max_val": torch.tensor(-torch.inf),
    },
    "metrics beside": lambda: {"model": beside(), "loss": torch.tensor(torch.nan), "best": torch.tensor(torch.inf)},
    "callbacks": lambda: {"state_dict": beside(), "callbacks": {"stop": {"best": torch.tensor([torch.inf] * 2)}}},
    "dead channels": lambda: layer(torch.zeros(3), torch.tensor([0.0, 1.0, 1e-30])),
    "unnormalised data": lambda: layer(torch.full((3,), 4e4), torch.tensor([1e9, 3e8, 2e7])),
    "zero layer": lambda: beside(zero=torch.zeros(4, 4)),
    "large throughout": lambda: {f"{index}.weight": torch.randn(4, 4) * 1e9 for index in range(5)},
    "large moments": lambda: optimizer("exp_avg_sq", 1e12),
    "rotary": lambda: beside(inv_freq=1e6 ** -torch.linspace(0, 1, 32), positions=torch.arange(1 << 17).float()),
    "fp16": lambda: {name: value.half() for name, value in trained()["model"].items()},
    "bf16": lambda: {name: value.bfloat16() for name, value in trained()["model"].items()},
    "fp8 to its edge": lambda: beside(w=torch.tensor([448.0, -448.0, 1.0]).to(torch.float8_e4m3fn)),
    "SGD": lambda: stepped(lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)),
    "Adagrad": lambda: stepped(lambda parameters: torch.optim.Adagrad(parameters)),
    "Adafactor": lambda: stepped(lambda parameters: torch.optim.Adafactor(parameters)),
    "capturable": lambda: stepped(lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.1), foreach=False)),
    "L-BFGS": lambda: stepped(lambda parameters: torch.optim.LBFGS(parameters)),
    "ReduceLROnPlateau": lambda: {"model": beside(), "scheduler": plateau().state_dict()},
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)).state_dict(),
    "lazy": lambda: {"model": beside(), "extra": None, "names": ["a", "b"], "rng": torch.get_rng_state()},
}


def plateau() -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    return torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1))


def stepped(make: Callable[[Any], torch.optim.Optimizer]) -> State:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    made = make(network.parameters())

    def closure() -> Tensor:
        made.zero_grad()
        loss = network(torch.randn(2, 3)).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        made.step(closure)
    return {"model": network.state_dict(), "optimizer": made.state_dict()}


@pytest.mark.parametrize("case", HEALTHY)
def test_what_is_healthy(tmp_path: Path, case: str) -> None:
    diagnosis = diagnose(saved(tmp_path, HEALTHY[case]()))
    assert diagnosis.verdict == "healthy", diagnosis.sick
    assert diagnosis.exit_code == 0


NOTES: dict[str, tuple[State, str]] = {
    "mask": (beside(mask=mask(-torch.inf)), "mask"),
    "dead channels": (layer(torch.zeros(3), torch.tensor([0.0, 1.0, 1.0])), "dead_channels"),
    "subnormal fp16": (beside(w=torch.full((9, 9), 1e-5, dtype=torch.float16)), "underflow"),
    "all below the smallest": (beside(w=torch.full((9, 9), 1e-39)), "underflow"),
    "metrics": ({"model": beside(), "loss": torch.tensor(torch.nan)}, "nan"),
    "nothing": ({"epoch": 3}, "no_tensors"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_is_worth_a_word(tmp_path: Path, case: str) -> None:
    state, code = NOTES[case]
    diagnosis = diagnose(saved(tmp_path, state))
    assert [(finding.code, finding.severity) for finding in diagnosis.findings] == [(code, "note")]


@pytest.mark.parametrize("seed", range(40))
def test_exactly_the_poisoned_tensors_are_named(tmp_path: Path, seed: int) -> None:
    """Of a whole training: any floating-point tensor that counts, any place, NaN or an infinity."""
    state, generator = trained(), torch.Generator().manual_seed(seed)
    candidates = [
        name
        for name, tensor in tensors_of(state).items()
        if tensor.is_floating_point() and name != "best_score" and not name.endswith("mask")
    ]
    how_many = int(torch.randint(1, 6, (), generator=generator))
    chosen = {candidates[int(index)] for index in torch.randperm(len(candidates), generator=generator)[:how_many]}
    tensors, expected = tensors_of(state), set()
    for name in sorted(chosen):
        values = tensors[name]
        place = int(torch.randint(values.numel(), (), generator=generator))
        value = (torch.nan, torch.inf, -torch.inf)[int(torch.randint(3, (), generator=generator))]
        if values.numel() == 1:  # a single -Inf is what masks are made of
            value = torch.nan
        index = torch.unravel_index(torch.tensor(place), values.shape)
        values[index] = value
        expected |= {other for other, tensor in tensors.items() if tensor.data_ptr() == values.data_ptr()}  # tied
    found = {finding.name for finding in diagnose(saved(tmp_path, state)).sick}
    assert found == expected
