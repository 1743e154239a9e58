"""Reads a checkpoint of anyone's PyTorch training, says what is wrong, repairs what can be repaired.

diagnosis = diagnose(Path("model.pt"))             # never runs code from the file
print(diagnosis.verdict, diagnosis.findings)
repaired = repair(Path("model.pt"))                # writes model_FIXED.pt beside it, never touches the original
checkpoints_in(Path("runs/m/v/20260101_..."))      # the checkpoints that a path means: of a run, of a folder
"""

from hpcstab.doctor.diagnose import diagnose
from hpcstab.doctor.findings import Change, Diagnosis, Finding, Repair
from hpcstab.doctor.paths import checkpoints_in
from hpcstab.doctor.repair import repair
from hpcstab.doctor.statistics import Reestimate

__all__ = ["Change", "Diagnosis", "Finding", "Reestimate", "Repair", "checkpoints_in", "diagnose", "repair"]
