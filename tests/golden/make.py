"""Make the golden run folder anew: ``python -m tests.golden.make``, when a schema changes on purpose.

A change here is a change of what users' run folders hold: raise ``SCHEMA_VERSION`` where an old reader
would misread the new files, and say it in the CHANGELOG.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

GOLDEN = Path(__file__).parent / "run"
"""``swae3d@after`` at scale tiny, seed 0; the machine's names, the diff of the tree
and the tensors are blanked."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hpcstab", "train", "swae3d@after", "--scale", "tiny", "--root", folder]
        subprocess.run(command, check=True)
        (made,) = Path(folder).glob("*/*/*/")
        shutil.rmtree(GOLDEN, ignore_errors=True)
        shutil.copytree(made, GOLDEN)
    identity = json.loads((GOLDEN / "run.json").read_text())
    (GOLDEN / "run.json").write_text(json.dumps({**identity, "dirty_diff": "", "commit": None}, indent=1) + "\n")
    attempt = json.loads((GOLDEN / "attempts" / "001.json").read_text())
    attempt["node"] = attempt["process"]["host"] = "node"
    (GOLDEN / "attempts" / "001.json").write_text(json.dumps(attempt, indent=1) + "\n")
    for state in GOLDEN.glob("checkpoints/*/state.pt"):
        state.unlink()  # hundreds of kilobytes; the checkpoint's own tests look at it
    log = GOLDEN / "logs" / "001.log"
    log.write_text(f"attempt 1 of {identity['run_id']} on node, process 1\nattempt 1 ended: completed, 6 steps\n")


if __name__ == "__main__":
    main()
