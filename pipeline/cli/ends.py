"""Say what a command took, what stands when it was told to stop, and how to go on."""

import os
import resource
import sys
import time
from pathlib import Path

from pipeline.printing import say, shown
from pipeline.stopping import Stopped, command_name, exit_code, reason, tell

WHOLE = "each file is whole, of this run or of an earlier one"
STANDS = {
    "check": "nothing but data/checked.txt is written here",
    "ingest": "data/interactions is written as a whole at the end, and an interrupted run leaves no part of it",
    "embed": "shards that an encoder finished stay in .sidpipe, and the next run uses them; " + WHOLE,
    "quantize": WHOLE,
    "split": WHOLE,
    "count": WHOLE,
    "train": "nothing new is saved; an earlier checkpoint, if there is one, stands",
    "dense": "nothing new is saved; an earlier checkpoint, if there is one, stands",
    "evaluate": WHOLE,
    "track": "the next run completes the page and the record in MLflow",
    "fetch": "what was downloaded stands and the download goes on there",
    "preset": "params.yaml is whole, as before or with the preset",
    "migrate": "params.yaml is whole, as before or with the new keys",
}


def tell_stopped(stopped: Stopped | None) -> int:
    """Print one line, and return the exit code. Of processes that work together the first one alone prints."""
    if os.environ.get("RANK", "0") == "0":
        command = command_name()
        stands = (stopped.stands if stopped else "") or STANDS.get(command, "")
        again = f"; {_again(command)}" if command in STANDS else ""
        tell(f"stopped by {reason()}" + (f"; {stands}{again}" if stands else ""))
    return exit_code()


def tell_costs(command: str, began: float) -> None:
    """Print the seconds since `began` (of time.monotonic), this process's largest memory, and the folder."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = time.monotonic() - began
    say(f"{command}: {seconds:.1f} s, at most {largest / 2**20:,.0f} MiB, in {shown(Path.cwd())}", error=True)


def _again(command: str) -> str:
    """Return how the work goes on."""
    if not os.environ.get("DVC_STAGE"):
        return "to go on, run the same command again"
    root = os.environ.get("DVC_ROOT")
    if root and Path(root).resolve() != Path.cwd().resolve():
        return "to go on, queue the same experiment again"
    return f"to go on, `dvc repro` (it runs {command} again)"
