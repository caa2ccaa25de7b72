"""Run one stage in a process of its own, and record what it cost.

Wall time depends on what else the machine does, so CPU seconds (user and system, all threads) are what to compare.
"""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.scale.logs import FACTS

SAMPLING = 0.05  # seconds between two looks at the memory
ROOT = Path(__file__).resolve().parents[2]


def measure(stage: str, data: Path, work: Path, checkout: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run `python -m pipeline STAGE` of a checkout in the folder `work`, and return one row.

    Args:
        stage: name of a stage of dvc.yaml.
        data: the folder that `logs.make` wrote.
        work: the project's folder, where data/, models/ and reports/ stay for the next stage.
        checkout: the tree whose code and defaults are used.
        settings: key of params.yaml (`train.steps`) -> value, over the checkout's presets/demo.yaml.

    Raises:
        SystemExit: the stage failed; its output is the message.
    """
    work.mkdir(parents=True, exist_ok=True)
    facts = json.loads((data / FACTS).read_text())
    params = yaml.safe_load((checkout / "presets/demo.yaml").read_text())
    params["dataset"] = "custom"
    params["ingest"]["path"] = str((data / "log").resolve())
    for key, value in settings.items():
        _set(params, key, value)
    (work / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "MLFLOW_DISABLE_TELEMETRY": "true"}
    ended = run_measured([sys.executable, "-m", "pipeline", stage], work, environment)
    if ended["code"]:
        raise SystemExit(f"stage {stage} failed:\n{(work / 'output.txt').read_text()[-3000:]}")
    return {
        "stage": stage,
        **{key: facts[key] for key in ("events", "items", "users", "width", "format")},
        **_left(work),
        **{key: ended[key] for key in ("cpu_seconds", "wall_seconds", "peak_rss_mib", "peak_anonymous_mib")},
        "output_mib": _size(work, checkout, stage),
        "settings": dict(settings),
        "commit": commit(checkout),
        "hardware": hardware(),
        "load": round(os.getloadavg()[0], 1),
    }


def run_measured(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command, with its output in output.txt of `folder`, and return its exit code and cost.

    peak_anonymous_mib is the memory beyond pages of mapped files, looked at every 50 ms: the kernel can take back such
    pages at any time, and peak_rss_mib counts them.
    """
    began = time.monotonic()
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=dict(environment), stdout=output, stderr=output)
        peak = [0]
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended))
        watcher.start()
        _, status, used = os.wait4(process.pid, 0)
        ended.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
    return {
        "code": process.returncode,
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "wall_seconds": round(time.monotonic() - began, 2),
        "peak_rss_mib": round(used.ru_maxrss / 1024),
        "peak_anonymous_mib": round(peak[0] / 1024),
    }


def _watch(process: int, peak: list[int], ended: threading.Event) -> None:
    """Keep in `peak` the most KiB of anonymous memory that the process had; 0 where the system does not tell."""
    while not ended.wait(SAMPLING):
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak[0] = max(peak[0], int(line.split()[1]))


def _set(params: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        params = params[section]
    params[last] = value


def _left(work: Path) -> dict[str, int]:
    """Return what ingest left of the log: interactions, and users and items with one."""
    summary = work / "data/interactions/ingest.json"
    if not summary.exists():
        return {}
    content = json.loads(summary.read_text())
    return {f"{key}_left": content[key] for key in ("interactions", "users", "items")}


def _size(work: Path, checkout: Path, stage: str) -> float:
    """Return the MiB of what the stage wrote, by the outs of dvc.yaml."""
    outs = yaml.safe_load((checkout / "dvc.yaml").read_text())["stages"][stage].get("outs", [])
    paths = [work / (next(iter(out)) if isinstance(out, dict) else out) for out in outs]
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    total: int = sum(file.stat().st_size for file in files)
    return round(total / 2**20, 1)


def commit(checkout: Path) -> str:
    """Return the short name of a checkout's commit, with a + where files differ from it."""
    git = ["git", "-C", str(checkout)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no", "pipeline", "dvc.yaml"],
        capture_output=True,
        text=True,
        check=True,
    )
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


def hardware() -> str:
    """Return the processor, its cores and the memory of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {name}, {memory:.0f} GiB"
