"""The network: the write-up's key, shapes, gradients, islands; and the U-Net beside it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.errors import ConfigError
from hpcstab.models.wavessm import state_space
from hpcstab.models.wavessm.config import Config, Network
from hpcstab.models.wavessm.network import WaveStateSpaceNetwork, largest_magnitudes
from hpcstab.models.wavessm.state_space import FrequencyAwareStateSpace, from_serpentine, serpentine
from hpcstab.models.wavessm.unet import num_parameters_of, unet_of_size

KEY = "refinement_ffc.scales.0.ffc.local_conv.1.running_mean"


def keys_of(variant: str = "before", scale: str = "tiny", *settings: str) -> Network:
    config = resolve(load_experiment("wavessm"), variant, scale, parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return config.network


def make(variant: str = "before", *settings: str) -> WaveStateSpaceNetwork:
    torch.manual_seed(0)
    return WaveStateSpaceNetwork(keys_of(variant, "tiny", *settings))


@pytest.mark.parametrize("scale", ["full", "small", "quick", "tiny"])
def test_the_key_of_the_write_up_is_in_the_state_dict(scale: str) -> None:
    with torch.device("meta"):
        state = WaveStateSpaceNetwork(keys_of("before", scale)).state_dict()
    assert KEY in state
    assert KEY.replace("scales.0", "scales.1").replace("mean", "var") in state or scale == "tiny"


@pytest.mark.parametrize("scan", ["exact", "clamped"])
def test_shape_and_every_parameter_gets_a_gradient(scan: str) -> None:
    network = make("before", f"network.scan={scan}", "network.num_blocks=[2, 1]")
    images = torch.rand(2, 3, 16, 24)
    restored = network(images)
    assert restored.shape == images.shape
    restored.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_starting_as_the_identity_hands_images_on() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(make("before+identity_start")(images), images)
    assert not torch.allclose(make("before")(images), images, atol=0.01)


def test_a_copy_is_a_network_of_its_own() -> None:
    network = make("cured").eval()
    other = copy.deepcopy(network)
    images = torch.rand(1, 3, 16, 16)
    expected = network(images)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert torch.equal(other(images), expected)


def test_serpentine_keeps_neighbours_and_comes_back() -> None:
    features = torch.arange(12.0).view(1, 1, 3, 4)
    assert serpentine(features).flatten().tolist() == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]
    features = torch.randn(2, 3, 4, 5)
    assert torch.equal(from_serpentine(serpentine(features), 4), features)


def test_the_convolution_before_the_scan_is_causal() -> None:
    torch.manual_seed(0)
    layer = FrequencyAwareStateSpace(2, 2, "exact", fp32_scan=True)
    sequence = torch.randn(10, 1, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer._causal(sequence)[6].sum(), sequence)
    assert gradient.abs().sum((1, 2)).nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_islands_run_in_fp32_inside_autocast() -> None:
    images = torch.rand(1, 3, 16, 16)
    seen: dict[str, torch.dtype] = {}

    def watch(variant: str) -> torch.dtype:
        network = make(variant)
        first = network.get_submodule("refinement_ffc.scales.0.ffc.local_conv.0")
        first.register_forward_hook(lambda module, inputs, output: seen.update(dtype=output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            network(images)
        return seen["dtype"]

    assert watch("before") == torch.bfloat16
    assert watch("before+fp32_refinement") == torch.float32


def test_the_largest_magnitudes_are_those_of_the_last_pass() -> None:
    network = make()
    network(torch.rand(1, 3, 16, 16))
    first = largest_magnitudes(network)
    assert all(0.0 < float(value) < 1e3 for value in first.values())
    images = torch.rand(1, 3, 16, 16)
    images[0, 0, 8, 8] = torch.inf
    network(images)
    assert not any(value.isfinite() for value in largest_magnitudes(network).values())
    assert largest_magnitudes(nn.Conv2d(1, 1, 1))["state_absmax"] == 0.0


@pytest.mark.parametrize("variant", ["before", "before+exact_scan", "before+fp32_scan", "cured"])
def test_states_that_are_computed_again_give_the_same_gradients(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an image of 256 x 256 are not kept for the backward pass: bit for bit the same, for less memory."""
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    kept, gradients = [], []
    for limit in (state_space._MAX_KEPT_BYTES, 0):
        monkeypatch.setattr(state_space, "_MAX_KEPT_BYTES", limit)
        network = make(variant, "network.num_states=8", "network.starts_as_identity=false")
        sizes: list[int] = []
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x),  # noqa: B023
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = network(images).float().square().mean()
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        kept.append(sum(sizes))
    assert kept[1] < 0.8 * kept[0]
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))


@pytest.mark.slow
def test_full_keeps_what_a_gpu_holds() -> None:
    """Four images of 256 x 256 in half precision, counted on shapes alone: 54 GiB were kept before."""
    sizes: dict[int, int] = {}
    kept = []

    def keep(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        sizes[storage._cdata] = storage.nbytes()
        kept.append(saved)
        return saved

    with FakeTensorMode():
        network = WaveStateSpaceNetwork(keys_of("before", "full"))
        images = torch.rand(4, 3, 256, 256)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), torch.autocast("cpu", torch.bfloat16):
            network(images)
    assert sum(sizes.values()) / 2**30 == pytest.approx(11.5, abs=0.5)


@pytest.mark.parametrize("scale", ["quick", "small"])
def test_the_unet_has_the_same_size(scale: str) -> None:
    keys = keys_of("cured", scale)
    own = num_parameters_of(WaveStateSpaceNetwork(keys))
    unet = unet_of_size(own, len(keys.channels), starts_as_identity=True)
    assert num_parameters_of(unet) == pytest.approx(own, rel=0.1)
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(unet(images), images)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("network.num_blocks=[1]", "2 levels, network.num_blocks 1"),
        ("network.channels=[4, 6]", "each level doubles"),
        ("data.image_size=20", "must be a multiple of 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        keys_of("before", "tiny", setting)
