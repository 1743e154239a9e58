"""A bare PyTorch loop with hpcstab's gate in three lines; one of its batches is not finite.

python examples/bare_loop.py
"""

from __future__ import annotations

import tempfile

import torch
from torch import nn

from hpcstab.stability import harden


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(512, 8)
    targets = inputs.square().sum(1, keepdim=True)
    inputs[100, 3] = float("inf")  # somebody's broken sample
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, targets), batch_size=32)
    model = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)

    with tempfile.TemporaryDirectory() as folder:
        hardened = harden(model, optimizer, max_grad_norm=10.0, capsules=folder)  # 1
        for epoch in range(3):
            for batch, target in hardened.batches(loader):  # 2
                loss = nn.functional.mse_loss(model(batch), target)
                loss.backward()
                hardened.step(loss)  # 3: in place of clip_grad_norm_ and optimizer.step()
                optimizer.zero_grad()
            print(f"epoch {epoch}: {hardened.summary()}")
    finite = all(bool(value.isfinite().all()) for value in model.state_dict().values())
    print(f"weights and BatchNorm statistics finite: {finite}")


if __name__ == "__main__":
    main()
