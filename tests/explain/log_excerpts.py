"""Ends of logs in the forms that PyTorch, CUDA, NCCL, Slurm and the shell give them; written here, for these tests."""

from __future__ import annotations

from typing import NamedTuple

from hpcstab.explain.causes import CauseName, Confidence


class Excerpt(NamedTuple):
    """``line``: of the first piece of evidence; ``step``: of the first non-finite value, where one is named."""

    text: str
    cause: CauseName
    line: int
    step: int | None = None
    confidence: Confidence = "certain"


_USER_FRAME = '  File "/home/ada/project/train.py", line 88, in main\n    loss = step(model, batch)\n'
_LIBRARY_FRAME = (
    '  File "/opt/env/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1773, in _call_impl\n'
    "    return forward_call(*args, **kwargs)\n"
)
_RAISED = f"Traceback (most recent call last):\n{_USER_FRAME}{_LIBRARY_FRAME}"
_ENDED = "slurmstepd: error: *** JOB 812345 ON gpua012 CANCELLED AT 2026-11-03T04:11:09"
_STEPS = "".join(f"step {step}: loss: {2.0 / (step + 1):.4f} lr: 1e-3\n" for step in range(20))

EXCERPTS: dict[str, Excerpt] = {
    "gpu out of memory": Excerpt(
        f"{_STEPS}{_RAISED}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total"
        " capacity of 39.39 GiB of which 1.12 GiB is free.\n",
        "out_of_memory",
        21,
    ),
    "host memory, by slurm": Excerpt(
        f"{_STEPS}slurmstepd: error: Detected 1 oom_kill event in StepId=812345.0. Some of the step tasks have been"
        " OOM Killed.\nsrun: error: gpua012: task 0: Out Of Memory\n",
        "out_of_memory",
        21,
    ),
    "shared memory": Excerpt(
        f"{_STEPS}ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory"
        f" (shm).\n{_RAISED}RuntimeError: DataLoader worker (pid 4242) is killed by signal: Bus error. It is possible"
        " that dataloader's workers are out of shared memory. Please try to raise your shared memory limit.\n",
        "out_of_memory",
        27,
    ),
    "killed by whom": Excerpt(
        f"{_STEPS}/var/spool/slurmd/job812/slurm_script: line 14:  3321 Killed                  python train.py\n",
        "out_of_memory",
        21,
        confidence="guess",
    ),
    "signal 9 under torchrun": Excerpt(
        f"{_STEPS}  rank      : 3 (local_rank: 3)\n  exitcode  : -9 (pid: 3321)\n",
        "out_of_memory",
        22,
        confidence="likely",
    ),
    "time limit": Excerpt(
        f"{_STEPS}{_ENDED} DUE TO TIME LIMIT ***\n"
        "srun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n",
        "time_limit",
        21,
    ),
    "preempted": Excerpt(
        f"{_STEPS}{_ENDED} DUE TO PREEMPTION ***\n",
        "preempted",
        21,
    ),
    "node failure": Excerpt(
        f"{_STEPS}{_ENDED} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n",
        "node_failure",
        21,
    ),
    "scancel": Excerpt(
        f"{_STEPS}{_ENDED} ***\n",
        "cancelled_by_user",
        21,
        confidence="likely",
    ),
    "device-side assert": Excerpt(
        f"{_STEPS}../aten/src/ATen/native/cuda/Loss.cu:245: nll_loss_forward: block: [0,0,0], thread: [5,0,0] Assertion"
        f" `t >= 0 && t < n_classes` failed.\n{_RAISED}RuntimeError: CUDA error: device-side assert triggered\n",
        "crash_in_code",
        22,
    ),
    "illegal access": Excerpt(
        f"{_STEPS}terminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: an illegal memory"
        " access was encountered\n",
        "crash_in_code",
        22,
        confidence="likely",
    ),
    "nccl timeout": Excerpt(
        f"{_STEPS}[rank1]:[E1103 04:11:09.123456789 ProcessGroupNCCL.cpp:632] [Rank 1] Watchdog caught collective"
        " operation timeout: WorkNCCL(SeqNum=4711, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600011 milliseconds\n",
        "hanging",
        21,
        confidence="likely",
    ),
    "quota": Excerpt(
        f"{_STEPS}{_RAISED}OSError: [Errno 122] Disk quota exceeded: 'checkpoints/last.ckpt'\n",
        "disk_full_or_quota",
        21,
    ),
    "missing module": Excerpt(
        f"Traceback (most recent call last):\n{_USER_FRAME}ModuleNotFoundError: No module named 'monai'\n",
        "missing_module_or_environment",
        1,
    ),
    "missing library": Excerpt(
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory\n",
        "missing_module_or_environment",
        1,
    ),
    "gpu error": Excerpt(
        f"{_STEPS}{_RAISED}RuntimeError: CUDA error: uncorrectable ECC error encountered\n", "crash_in_code", 21
    ),
    "a sample is missing": Excerpt(
        f"{_STEPS}Traceback (most recent call last):\n"
        '  File "/home/ada/project/volumes.py", line 31, in __getitem__\n    volume = load(self.paths[index])\n'
        "ValueError: cannot reshape array of size 262143 into shape (64,64,64)\n",
        "data_error",
        21,
    ),
    "nan in text": Excerpt(
        f"{_STEPS}step 20: loss: nan lr: 1e-3\nstep 21: loss: nan lr: 1e-3\n", "nonfinite_operation", 21, 20
    ),
    "nan in json lines": Excerpt(
        '{"step": 7, "loss": 1.25}\n{"step": 8, "loss": NaN, "grad_norm": NaN}\n', "nonfinite_operation", 2, 8
    ),
    "nan in a dict": Excerpt(
        "{'loss': 2.31, 'learning_rate': 1e-05, 'epoch': 0.1}\n{'loss': nan, 'learning_rate': 1e-05, 'epoch': 0.2}\n",
        "nonfinite_operation",
        2,
    ),
    "nan in a progress bar": Excerpt(
        "Epoch 3:  44%|####4     | 44/100 [00:12<00:15,  3.60it/s, v_num=3, train_loss=0.412]\r"
        "Epoch 3:  45%|####5     | 45/100 [00:12<00:15,  3.60it/s, v_num=3, train_loss=nan.0]\n",
        "nonfinite_operation",
        1,
        45,
    ),
    "inf before the end": Excerpt(
        f"{_STEPS}train_loss=inf step=20\n{_ENDED} DUE TO TIME LIMIT ***\n",
        "nonfinite_operation",
        21,
        20,
    ),
    "anomaly mode": Excerpt(
        f"{_STEPS}{_RAISED}RuntimeError: Function 'LogBackward0' returned nan values in its 0th output.\n",
        "nonfinite_operation",
        21,
    ),
    "a chain": Excerpt(
        f"{_STEPS}{_RAISED}KeyError: 'volume'\n\n"
        f"During handling of the above exception, another exception occurred:\n\n{_RAISED}SystemExit: 1\n",
        "crash_in_code",
        21,
    ),
    "completed": Excerpt(
        f"{_STEPS}`Trainer.fit` stopped: `max_epochs=3` reached.\n", "completed_healthy", 21, confidence="guess"
    ),
    "nothing": Excerpt(_STEPS, "unknown", 20),
    "start values are no failure": Excerpt(f"best_loss: inf patience: 3\n{_STEPS}", "unknown", 21),
}
