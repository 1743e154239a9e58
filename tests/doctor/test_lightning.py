"""A checkpoint that Lightning itself wrote, sick and repaired, and Lightning goes on from it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hpcstab.doctor import diagnose, repair
from tests.doctor.making import Network

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_real_checkpoint(tmp_path: Path, precision: Any) -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not here: pip install 'hpcstab[torture]'")
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, args: argparse.Namespace) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.network = Network()

        def training_step(self, batch: Tensor) -> Tensor:
            loss = self.network(batch).square().mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}

    def fit(epochs: int, checkpoint: Path | None = None) -> Any:
        keeper = ModelCheckpoint(dirpath=tmp_path, save_last=True)
        stopper = EarlyStopping("loss", mode="max", check_on_train_epoch_end=True, patience=9)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            precision=precision,
            callbacks=[keeper, stopper],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        loader = DataLoader(torch.randn(8, 3, 12, 12), batch_size=2)
        trainer.fit(Module(argparse.Namespace(width=8)), loader, ckpt_path=checkpoint, weights_only=False)
        return trainer

    fit(1)
    last = tmp_path / "last.ckpt"
    healthy = diagnose(last)
    assert (healthy.verdict, healthy.kind, healthy.step) == ("healthy", "Lightning checkpoint", 4), healthy.findings
    state = torch.load(last, weights_only=False)
    state["state_dict"]["network.encoder.1.running_mean"][2] = torch.nan
    state["optimizer_states"][0]["state"][3]["exp_avg_sq"][:] = torch.inf
    torch.save(state, last)
    assert {finding.name for finding in diagnose(last).sick} == {
        "state_dict.network.encoder.1.running_mean",
        "optimizer_states.0.state.3.exp_avg_sq",
    }
    out = repair(last).out
    assert out is not None
    trainer = fit(2, out)
    assert trainer.global_step == 8
    assert all(tensor.isfinite().all() for name, tensor in trainer.model.state_dict().items() if "mask" not in name)
