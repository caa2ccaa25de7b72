"""Choose device, threads and deterministic kernels for training and evaluation, and measure the memory they use."""

import math
import os
import resource
import sys
import threading
from pathlib import Path

import torch

from pipeline.errors import UserError

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # FLOP/s of dense bfloat16, by a part of the GPU's name
NUMBERS_PER_THREAD = 2**17  # with fewer, two threads wait for each other longer than they save


def pick_device(wanted: str, key: str = "train.device") -> torch.device:
    """Return the device that the user wants; `auto` is the GPU of this process if there is one, else the CPU.

    Args:
        wanted: "auto", "cpu" or "cuda".
        key: name of the parameter that says so, for the error.

    Raises:
        UserError: `wanted` is "cuda" and torch sees no GPU.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            f"{key} is cuda, but torch sees no GPU",
            f"torch {torch.__version__} is installed",
            f"set {key} to auto, or install a CUDA build of torch",
        )
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def share_of_threads(numbers: int | None = None, proc: Path = Path("/proc"), quota: Path = CGROUP_QUOTA) -> int:
    """Return this process's share of the cores, which DVC experiments and torchrun's local processes divide.

    Args:
        numbers: size of the tensors that are worked on; small ones get no more threads than they can use.
        proc: the folder where Linux lists processes.
        quota: the file where a container says how many cores it may use.
    """
    sharing = running_experiments(proc) * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    useful = _cores(quota) if numbers is None else numbers // NUMBERS_PER_THREAD
    return max(1, min(_cores(quota) // sharing, useful))


def set_threads(wanted: int, otherwise: int, key: str = "train.threads") -> None:
    """Set how many threads torch computes with.

    Args:
        wanted: what the user says; 0: `otherwise`.
        otherwise: a share of the cores.
        key: name of the parameter that says so, for the error.

    Raises:
        UserError: the machine cannot start so many. OpenMP would end the process there, without a line.
    """
    if wanted > otherwise and (startable := _startable(wanted)) < wanted:
        raise UserError(
            f"{key} is {wanted:,}, but this process can safely start no more than {startable:,} threads",
            "each needs address space for its stack, and the system limits their number (`ulimit -v`, `ulimit -u`)",
            f"set {key} to 0 (a share of the cores), or to the number of cores at most",
        )
    torch.set_num_threads(wanted or otherwise)


def _startable(wanted: int) -> int:
    """Return how many threads can be started at once, `wanted` at most, by starting a quarter more."""
    tried = wanted + wanted // 4
    end = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(tried):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:  # "can't start new thread"
        pass
    finally:
        end.set()
        for thread in started:
            thread.join()
    return wanted if len(started) == tried else len(started) * 4 // 5


def running_experiments(proc: Path = Path("/proc")) -> int:
    """Return how many queued DVC experiments run now on this machine; 1 where no queue runs.

    `dvc queue start -j N` runs each experiment in a separate process, `dvc exp exec-run`. Where there is no /proc
    (macOS) they cannot be counted: set `train.threads` there.
    """
    commands = []
    for path in proc.glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes().split(b"\0"))
        except OSError:
            continue  # the process ended meanwhile
    return max(1, sum(b"exec-run" in words and b"--infofile" in words for words in commands))


def _cores(quota: Path) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, math.ceil(int(allowed) / int(period)))
    return cores


def make_repeatable(device: torch.device, deterministic: bool) -> None:
    """Use kernels that add in a fixed order: always on a CPU, on a GPU when `deterministic` is on."""
    if device.type == "cuda" and deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    if device.type == "cpu":
        torch.set_deterministic_debug_mode(
            "error"
        )  # the same switch, without loading torch's compiler, which takes 1 s
    else:
        torch.use_deterministic_algorithms(deterministic)
    # No kernel here reads what it has not written, so that filling new tensors would only cost time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # torch's stub lacks it


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given, so that a clock read now counts it; a CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device: torch.device) -> float | None:
    """Return the peak rate of dense bfloat16 in FLOP/s; None for a device that `PEAKS` does not list."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)


def peak_memory_gib(device: torch.device) -> float:
    """Return in GiB the most GPU memory that tensors held so far, or on a CPU the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
