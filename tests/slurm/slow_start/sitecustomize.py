"""A trainer whose Python is slow to start, as on a busy file system: the first one never gets past here."""

import os
import time
from pathlib import Path

_log = os.environ.get("HPCSTAB_TEST_STARTS")
if _log and "SLURM_STEP_ID" in os.environ:
    is_first = not Path(_log).exists()
    with Path(_log).open("a") as file:
        file.write(f"restart {os.environ.get('SLURM_RESTART_COUNT', 0)}\n")
    if is_first:
        time.sleep(300)
