"""What srun starts: ``python -m hpcstab.launch.slurm_step <folder>``, submitit behind signals that wait.

A signal can come while Python still imports, and would end it by its default action: in GraceTime the job would then
be FAILED for good. So they wait, from here until :class:`~hpcstab.launch.signals.StopSignals` listens. What comes
before even this line is the batch script's business.
"""

from __future__ import annotations

from hpcstab.launch.signals import hold_back

if __name__ == "__main__":
    hold_back()
    from submitit.core.submission import submitit_main

    submitit_main()
