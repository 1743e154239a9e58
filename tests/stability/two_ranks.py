"""One of two processes that train by DDP over gloo: ``python -m tests.stability.two_ranks RANK MEETING_FILE``.

Prints a line of JSON a case: what the loop with the three lines did, and whether its result is bitwise that of a bare
DDP loop that never saw the bad batch.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from hpcstab.stability import harden
from tests.stability.loops import ResNet
from tests.training.test_gate import same
from tests.two_processes import one_of_two

NUM_BATCHES = 8
CASES: dict[str, tuple[int, int, bool]] = {
    # name: rank whose batch is bad, at which index, and whether it is bad whenever it comes
    "batch of rank 0": (0, 3, True),
    "batch of rank 1": (1, 3, True),
    "machine of rank 1": (1, 4, False),
    "scale of rank 1": (1, 2, False),
}


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(rank)
    return [
        (torch.randn(4, 3, 8, 8, generator=generator), torch.randint(10, (4,), generator=generator))
        for _ in range(NUM_BATCHES)
    ]


def model() -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = DistributedDataParallel(nn.Sequential(ResNet((4, 8), 1), nn.Dropout(0.2)))
    return network, torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, fused=True)


def bare(rank: int, left_out: int | None) -> list[Any]:
    network, optimizer = model()
    for index, (images, labels) in enumerate(batches(rank)):
        if index != left_out:
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    return [network.module.state_dict(), optimizer.state_dict()["state"]]


def report(rank: int, case: str) -> dict[str, Any]:
    bad_rank, bad_index, is_lasting = CASES[case]
    network, optimizer = model()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=99) if case.startswith("scale") else None
    num_seen = 0
    with tempfile.TemporaryDirectory() as folder:
        hardened = harden(network, optimizer, scaler=scaler, capsules=folder)
        for index, (images, labels) in hardened.batches(enumerate(batches(rank))):
            num_seen += index == bad_index
            is_bad = (rank, index) == (bad_rank, bad_index) and (is_lasting or num_seen == 1)
            loss = F.cross_entropy(network(images * math.nan if is_bad and scaler is None else images), labels)
            if is_bad and scaler is not None:  # a finite loss, and a gradient of this rank alone that is NaN
                loss = loss + torch.sqrt(0.0 * network.module[0].head.bias.sum())
            (scaler.scale(loss) if scaler else loss).backward()
            hardened.step(loss)
            optimizer.zero_grad()
        capsules = sorted(path.name for path in Path(folder).iterdir())
    left_out = bad_index if is_lasting else None
    ours = [network.module.state_dict(), optimizer.state_dict()["state"]]
    return {
        "same": same(ours, bare(rank, left_out)),
        "events": [event["kind"] for event in hardened.events],
        "reasons": [event["reason"] for event in hardened.events if "reason" in event],
        "updates": hardened.updates,
        "capsules": capsules,
        "scale": scaler.get_scale() if scaler else None,
    }


def main(rank: int, meeting: str) -> None:
    with one_of_two(rank, meeting):
        for case in CASES:
            print(json.dumps({"case": case, **report(rank, case)}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
