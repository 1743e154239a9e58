"""Whether weights fit a network, by the names and shapes of its state dict."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Layout = dict[str, tuple[int, ...]]
"""Name and shape of every tensor of a network's state dict."""
_NUM_NAMED = 3


def layout_of(state_dict: Mapping[str, Tensor]) -> Layout:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def misfits(weights: Layout, network: Layout) -> list[str]:
    """What keeps the weights from being the network's, a tensor each."""
    found = [f"{name} is not there" for name in weights if name not in network]
    found += [f"{name} is new" for name in network if name not in weights]
    found += [
        f"{name} has {_shape(network[name])} instead of {_shape(shape)}"
        for name, shape in weights.items()
        if name in network and network[name] != shape
    ]
    return found


def misfit_text(found: list[str]) -> str:
    """The first few, and how many there are."""
    more = f" and {len(found) - _NUM_NAMED} more" if len(found) > _NUM_NAMED else ""
    return f"{', '.join(found[:_NUM_NAMED])}{more}"


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))
