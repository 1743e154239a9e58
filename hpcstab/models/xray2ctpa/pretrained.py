"""The autoencoder of a stage-1 run, from one of its checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from hpcstab.errors import ConfigError, DataError
from hpcstab.models.xray2ctpa.autoencoder import VectorQuantizedAutoencoder
from hpcstab.models.xray2ctpa.config import Network
from hpcstab.models.xray2ctpa.fitting import new_autoencoder

_STATE = "state.pt"


def load_autoencoder(keys: Network) -> VectorQuantizedAutoencoder:
    """The network of ``network.checkpoint``: a run's folder (its newest checkpoint), a checkpoint's, or a state.pt.

    Raises:
        ConfigError: no checkpoint is named, or it holds another architecture.
        DataError: it is not there, or cannot be read.
    """
    if keys.checkpoint is None:
        raise ConfigError(
            "network.autoencoder is pretrained, network.checkpoint names none: train one with"
            " `--set network.stage=autoencoder` and give its run's folder, or set network.autoencoder=fitted"
        )
    path = _state_file(Path(keys.checkpoint).expanduser())
    autoencoder = new_autoencoder(keys)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)["network"]
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    try:
        autoencoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise ConfigError(f"{path}: is no autoencoder of network.channels {list(keys.channels)}: {reason}") from None
    return autoencoder.eval()


def _state_file(path: Path) -> Path:
    if path.is_file():
        return path
    if (path / _STATE).is_file():
        return path / _STATE
    found = sorted((path / "checkpoints").glob(f"step_*/{_STATE}"))
    if not found:
        raise DataError(f"network.checkpoint '{path}': there is no {_STATE} in it, nor in checkpoints/step_* below it")
    return found[-1]
