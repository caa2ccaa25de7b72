"""Run the trials of `make torture`, and write the table of docs/reliability.md.

    make torture                                   # two hours; goes on where the last call stopped
    python -m benchmarks.torture --hours 0.1 --seed 7 --file /tmp/trials.jsonl
    python -m benchmarks.torture --jobs 16 --by-hand    # 16 trials at once, on a machine without DVC and MLflow
    python -m benchmarks.torture --table           # only the table, from the file

Each finished trial is a line of the JSON lines file, with its verdict: `ok` (the same bytes as an undisturbed run),
`refused` (a plain message, and nothing wrong afterwards) or `FAIL` (a traceback, a hang over 30 s, other bytes).
A trial's name and the seed decide all that is random in it, so `--only NAME` repeats it. With `--jobs N` the same list
is worked off by N processes, each with copies of the project of its own; lines are appended as trials end.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/support"))  # odd values and the hostile server, which tests use too

from benchmarks.torture.process import LIMITS, forked, preload  # noqa: E402
from benchmarks.torture.project import BY_HAND, STAGES, build, copy, digest, lay_out, remove  # noqa: E402
from benchmarks.torture.trial import OK, REFUSED, Trial, World  # noqa: E402
from benchmarks.torture.trials import all_trials  # noqa: E402

FILE = ROOT / "docs/results/torture.jsonl"
PAGE = ROOT / "docs/reliability.md"
WITH_DVC = ("signals, dvc repro", "signals, queue workers")
QUICK = (
    "signals, stages by hand",
    "disk full",
    "data files cut, zeroed, flipped",
)  # parts of short trials, without DVC
BEGIN, END = "<!-- made by python -m benchmarks.torture --table -->", "<!-- end -->"


def main() -> None:
    """Parse the arguments, and run or print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, default=FILE, help="finished trials, JSON lines")
    parser.add_argument("--part", default="", help="only parts whose name has this text")
    parser.add_argument("--only", default="", help="only this trial, again, without writing it down")
    parser.add_argument("--most", type=int, default=0, help="the most trials; 0: no limit")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--by-hand", action="store_true", help="only trials that need neither DVC nor MLflow")
    parser.add_argument("--quick", action="store_true", help="a smaller project, and only short trials by hand")
    parser.add_argument("--table", action="store_true", help=f"write the table of {PAGE.name} and stop")
    options = parser.parse_args()
    if options.table:
        write_table(options.file)
        return
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        failed = torture(Path(folder), options)
    if not options.only and options.file == FILE:
        write_table(options.file)
    sys.exit(1 if failed else 0)


def torture(folder: Path, options: argparse.Namespace) -> int:
    """Run the trials that the file does not have yet, and return how many failed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    jobs = max(options.jobs, 1)
    world = make_world(folder, quick=options.quick, dvc=not (options.quick or options.by_hand))
    LIMITS.hang *= max(1.0, jobs / (os.cpu_count() or 1))
    done = set() if options.only else {row["trial"] for row in read(options.file)}
    everything = all_trials(world, options.seed)
    of = Counter(trial.part for trial in everything)
    trials = [trial for trial in everything if trial.name not in done and options.part in trial.part]
    if options.quick or options.by_hand:
        trials = [trial for trial in trials if trial.part not in WITH_DVC and "track" not in trial.name]
    if options.quick:
        trials = [trial for trial in trials if trial.part in QUICK]
    if options.only:
        trials = [trial for trial in trials if trial.name == options.only]
    if options.most:
        trials = trials[: options.most]
    failed = work_off(world, trials, of, options, jobs)
    if not options.only:  # once more at the end, where a log that is cut still shows them
        names = {trial.name for trial in trials}
        for row in failures(row for row in read(options.file) if row["trial"] in names):
            print(f"{row['verdict']:8} {row['trial']}: {row['detail']}")
    return failed


def work_off(world: World, trials: Sequence[Trial], of: Counter[str], options: argparse.Namespace, jobs: int) -> int:
    """Run the trials in `jobs` processes, and return how many failed."""
    forking = multiprocessing.get_context("fork")  # the libraries are loaded, and a trial cannot be pickled
    following, count, failed = (forking.Value("i", 0) for _ in range(3))
    deadline = time.monotonic() + 3600 * options.hours
    head = commit()

    def work(scratch: Path) -> None:
        own = replace(world, scratch=scratch)
        while time.monotonic() < deadline:
            with following:
                number = following.value
                following.value += 1
            if number >= len(trials):
                return
            row = run_trial(own, trials[number], options.seed)
            row = {**row, "of": of[row["part"]], "commit": head, "seed": options.seed, "jobs": jobs}
            with count:
                count.value += 1
                failed.value += row["verdict"] not in (OK, REFUSED)
                print(f"{row['verdict']:8} {row['trial']}: {row['detail'][:160]}", flush=True)
                if not options.only:
                    append(options.file, row)

    if jobs == 1:
        work(world.scratch)
    else:
        workers = [forking.Process(target=work, args=(world.scratch / f"job-{number}",)) for number in range(jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if lost := sum(worker.exitcode != 0 for worker in workers):
            print(f"{lost} of {jobs} processes of the torture itself ended early")
            failed.value += lost
    print(f"{count.value} trials, {failed.value} failed")
    return int(failed.value)


def run_trial(world: World, trial: Trial, seed: int) -> dict[str, Any]:
    """Run one trial, and return its row."""
    began = time.monotonic()
    world.scratch.mkdir(exist_ok=True)
    try:
        verdict, detail = trial.run(world, random.Random(f"{seed} {trial.name}"))
    except Exception as error:  # a fault of the trial itself is shown as one
        verdict, detail = "broken", f"{type(error).__name__}: {error}"
    return {
        "part": trial.part,
        "trial": trial.name,
        "verdict": verdict,
        "seconds": round(time.monotonic() - began, 1),
        "detail": detail.replace(str(world.scratch), "."),
    }


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the file of finished trials."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def make_world(folder: Path, *, quick: bool = False, dvc: bool = True) -> World:
    """Build the project, and measure how long each stage takes in a forked child; without `dvc` all stages but track.

    Args:
        quick: of a smaller project.
        dvc: by `dvc repro`.
    """
    print("building the project", flush=True)
    reference = folder / "reference"
    reference.mkdir()
    preload(tracking=dvc)
    if not dvc:
        lay_out(reference, *((100, ["train.max_windows=300", "train.validate_every=5"]) if quick else ()))
        ended = {stage: forked([stage], reference) for stage in BY_HAND}
        if any(one.code for one in ended.values()):
            raise SystemExit("\n".join(one.text for one in ended.values()))
        return World(reference, digest(reference), folder, {stage: one.seconds for stage, one in ended.items()})
    build(reference)
    outputs = digest(reference)
    seconds = {}
    for stage in STAGES:
        trial = copy(reference, folder / "measured")
        remove(trial, stage)
        again = forked([stage], trial)
        if again.code or digest(trial) != outputs:
            raise SystemExit(f"stage {stage} does not repeat its bytes by hand: {again.text[-500:]}")
        seconds[stage] = again.seconds
    print("seconds by stage:", {stage: round(value, 2) for stage, value in seconds.items()}, flush=True)
    return World(reference, outputs, folder, seconds)


def commit() -> str:
    """Return the short name of the commit that is tortured."""
    shown = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return shown.stdout.strip()


def read(path: Path) -> list[dict[str, Any]]:
    """Return the finished trials."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def failures(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of trials that failed, or that broke by a fault of their own."""
    return [row for row in rows if row["verdict"] not in (OK, REFUSED)]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of figures: a row per part, a column per verdict."""
    lines = ["| what was done | trials | of | ok | refused | FAIL |", "|---|---|---|---|---|---|"]
    parts = sorted({row["part"] for row in rows})
    for part in parts:
        verdicts = [row["verdict"] for row in rows if row["part"] == part]
        counts = [str(verdicts.count(name)) for name in ("ok", "refused", "FAIL")]
        of = max(row["of"] for row in rows if row["part"] == part)
        lines.append(f"| {part} | {len(verdicts):,} | {of:,} | {' | '.join(counts)} |")
    commits = sorted({row["commit"] for row in rows})
    hours = sum(row["seconds"] / row.get("jobs", 1) for row in rows) / 3600
    lines += ["", f"{len(rows):,} trials in {hours:.1f} hours, at commit {', '.join(commits)}, two CPU cores."]
    if failed := failures(rows):
        lines += ["", "The failures:", ""]
        lines += [
            f"- `{row['trial']}`: {row['detail'].splitlines()[0][:150] if row['detail'] else ''}" for row in failed[:40]
        ]
    return "\n".join(lines)


def write_table(path: Path) -> None:
    """Replace the part of docs/reliability.md between its two marks."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table(read(path))}\n{END}{after}")


if __name__ == "__main__":
    main()
