"""What the last words of a training look like, whoever wrote it: lines of CUDA, NCCL, Slurm, the kernel, Python.

A pattern whose line is seldom the reason itself is a ``likely`` or a ``guess``: a collective that timed out waited for
a rank that had ended for its own reason, and a bare `Killed` does not say by whom.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcstab.explain.causes import CauseName, Confidence


@dataclass(frozen=True)
class Pattern:
    """A line that holds one of ``needles``, and where there is one matches ``regex``; ``says`` is what it means.

    Needles are plain bytes, so that gigabytes can be searched for them; a regular expression sees single lines only.
    """

    cause: CauseName
    confidence: Confidence
    says: str
    needles: tuple[bytes, ...]
    regex: re.Pattern[bytes] | None = None


PATTERNS: tuple[Pattern, ...] = (
    Pattern(
        "out_of_memory",
        "certain",
        "the GPU's memory ran out",
        (b"CUDA out of memory", b"HIP out of memory", b"_STATUS_ALLOC_FAILED", b"CUDA error: out of memory"),
    ),
    Pattern(
        "out_of_memory",
        "certain",
        "the job reached its limit of host memory, and a process of it was killed for that",
        (
            b"oom_kill",
            b"oom-kill",
            b"OUT_OF_MEMORY",
            b"OOM Killed",
            b"Exceeded job memory limit",
            b"cgroup out of memory",
        ),
    ),
    Pattern(
        "out_of_memory",
        "certain",
        "host memory could not be allocated",
        (b"DefaultCPUAllocator: ", b"Cannot allocate memory", b"std::bad_alloc"),
    ),
    Pattern(
        "out_of_memory",
        "certain",
        "shared memory ran out: DataLoader workers pass batches through /dev/shm",
        (b"out of shared memory", b"unable to open shared memory", b"unable to allocate shared memory"),
    ),
    Pattern("out_of_memory", "likely", "a mapped file, most often in /dev/shm, could not grow", (b"Bus error",)),
    Pattern(
        "out_of_memory",
        "likely",
        "killed with signal 9, which is how the kernel ends a process when memory runs out",
        (b"137", b"exitcode", b"ignal 9", b"killed by signal: Killed"),
        re.compile(rb"exit code:? ?137\b|exitcode *: *-9\b|[Ss]ignal 9\b|killed by signal: Killed"),
    ),
    Pattern(
        "out_of_memory",
        "guess",
        "killed with signal 9, by the kernel for memory or by somebody",
        (b"Killed",),
        re.compile(rb"^Killed\s*$|: line \d+: +\d+ Killed\b|: task \d+: Killed"),
    ),
    Pattern(
        "disk_full_or_quota",
        "certain",
        "a file could not be written",
        (b"No space left on device", b"Disk quota exceeded", b"File too large", b"PytorchStreamWriter failed writing"),
    ),
    Pattern("disk_full_or_quota", "certain", "the folder is read-only", (b"Read-only file system",)),
    Pattern(
        "missing_module_or_environment",
        "likely",
        "Python lacks a package on this node",
        (b"ModuleNotFoundError: ", b"ImportError: ", b": No module named "),
    ),
    Pattern(
        "missing_module_or_environment",
        "certain",
        "a program or a library is not on this node",
        (b"cannot open shared object file", b"command not found", b"execve(): ", b"GLIBC", b"Illegal instruction"),
        re.compile(rb"shared object|: command not found|execve\(\): .+: No such file|' not found|Illegal instruction"),
    ),
    Pattern(
        "missing_module_or_environment",
        "certain",
        "the driver and this PyTorch do not fit, or there is no GPU",
        (
            b"driver version is insufficient",
            b"no kernel image is available",
            b"No CUDA GPUs are available",
            b"no CUDA-capable device",
            b"Found no NVIDIA driver",
        ),
    ),
    Pattern(
        "missing_module_or_environment",
        "likely",
        "the port of the rendezvous is taken, by another job of this node",
        (b"EADDRINUSE", b"Address already in use"),
    ),
    Pattern("node_failure", "certain", "Slurm lost the node", (b"DUE TO NODE FAIL", b"ode failure on ", b"NODE_FAIL")),
    Pattern(
        "node_failure",
        "likely",
        "the GPU itself failed: leave the node out (sbatch --exclude) and tell its operators",
        (b"uncorrectable ECC error", b"fallen off the bus", b"NVRM: Xid", b"unspecified launch failure"),
    ),
    Pattern("preempted", "certain", "a job of higher priority took the node", (b"DUE TO PREEMPTION",)),
    Pattern("time_limit", "certain", "the time limit was reached", (b"DUE TO TIME LIMIT", b"DUE TO JOB TIMEOUT")),
    Pattern(
        "cancelled_by_user",
        "likely",
        "scancel, by whoever",
        (b" CANCELLED AT ",),
        re.compile(rb" CANCELLED AT \S+ \*\*\*"),
    ),
    Pattern("cancelled_by_user", "certain", "Ctrl-C", (b"KeyboardInterrupt",), re.compile(rb"^KeyboardInterrupt\b")),
    Pattern(
        "crash_in_code",
        "certain",
        "an index was out of range in a GPU kernel, e.g. a class label; CUDA_LAUNCH_BLOCKING=1 names the Python line",
        (b"device-side assert triggered", b": Assertion `"),
    ),
    Pattern(
        "crash_in_code",
        "likely",
        "a GPU kernel left its memory; CUDA_LAUNCH_BLOCKING=1 names the Python line, compute-sanitizer the kernel",
        (b"illegal memory access", b"misaligned address"),
    ),
    Pattern("crash_in_code", "likely", "native code crashed", (b"Segmentation fault", b"Fatal Python error")),
    Pattern(
        "hanging",
        "likely",
        "ranks waited for one that did not come: look at the rank that is not among those who complain",
        (b"atchdog caught collective operation timeout", b"Timed out waiting ", b"wait timeout after "),
    ),
    Pattern(
        "hanging",
        "guess",
        "communication between ranks broke: another rank has ended, or the network",
        (
            b"has lost contact with the others",
            b"NCCL error",
            b"ncclInternalError",
            b"ncclSystemError",
            b"ncclRemoteError",
            b"Connection closed by peer",
        ),
    ),
    Pattern(
        "data_error",
        "likely",
        "a DataLoader worker ended",
        (b"DataLoader worker",),
        re.compile(rb"exited unexpectedly|killed by signal: (?!Bus|Killed)"),
    ),
    Pattern(
        "precision_overflow",
        "likely",
        "the loss scale went down until there was nothing left to go down to",
        (b"inimum loss scale reached", b"oss scale already at minimum"),
    ),
    Pattern(
        "nonfinite_operation",
        "certain",
        "autograd's anomaly mode names a backward function that returned NaN",
        (b"returned nan values in its ",),
    ),
    Pattern(
        "nonfinite_operation",
        "certain",
        "a check of the program itself found it",
        (b"nan", b"NaN", b"inf", b"Inf"),
        re.compile(
            rb"loss is (?:nan|infinite|inf)\b|(?:nan|inf) (?:loss|gradients?) (?:detected|encountered|found)"
            rb"|(?:found|detected|encountered) (?:a )?(?:nan|inf)\b(?! checks)",
            re.IGNORECASE,
        ),
    ),
    Pattern(
        "completed_healthy",
        "guess",
        "the training says that it came to its end",
        (b"stopped: `max_", b"raining complete", b"raining done", b"raining finished", b" ended: completed"),
    ),
)

NONFINITE_NEEDLES = (b"nan", b"NaN", b"NAN", b"inf", b"Inf")
NONFINITE = re.compile(
    rb"(?P<name>[A-Za-z_][\w/.-]*)[\"']?(?P<between>\s*[:=\s]\s*)[\"']?"
    rb"(?P<value>[-+]?(?:nan|inf(?:inity)?))(?:\.0)?(?![\w.])",
    re.IGNORECASE,
)
"""A name and a value that is not finite: ``loss: nan``, ``train_loss=nan``, ``"loss": NaN``, ``loss nan``."""
IS_TRAINED = re.compile(rb"loss|nll|perplexity|ppl|mse|mae\b|objective|elbo|bce|cost", re.IGNORECASE)
IS_START_VALUE = re.compile(rb"best|min|lowest|patience|threshold|limit|max|init", re.IGNORECASE)
"""``best_loss: inf`` is what a training starts from."""
STEP = re.compile(
    rb"(?<![\w.])(?:global_?step|steps?|iter(?:ation)?s?|update)[\"']?\s*[:=#]?\s*[\"'\[(]?\s*(?P<step>\d+)"
    rb"|\|\s*(?P<bar>\d+)/\d+ \[",
    re.IGNORECASE,
)
