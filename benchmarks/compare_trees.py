"""Two checkouts of the project against each other, before and after code was moved: same numbers, same speed?

    python benchmarks/compare_trees.py identity|counts|tests|quality --jobs 3 --old DIR --new DIR --data DIR --out FILE
    python benchmarks/compare_trees.py speed ... --jobs 8 --warm && python benchmarks/compare_trees.py speed ...

`--data` has interactions/, sids/ and splits/, at best those of Amazon Beauty under `preset beauty-fast`. Each run is a
process in a scratch folder, by the tree's own commands, params.yaml and presets. A line is printed, and a row appended
to `--out`, as each case ends; exit code 1 when one fails. `--small` is a form for a CPU. Needs GNU `timeout`.

identity: `pipeline train`, 300 steps (skipgr: 3.5 passes), deterministic, in both trees; where the old tree cannot,
without CUDA graphs, or else not deterministic. identical: the bytes of model.safetensors and history.csv; near: equal
keys, losses at most 1e-5 apart. Unless identical, `old again` is how far the old tree is from itself.
counts: `pipeline train` for 80 steps: CUDA graphs recorded and replayed, graphs compiled, recompilations; in 30 steps,
kernels and copies on the GPU, and how often the main thread waited for it (it looks at the losses every 20 steps).
tests: the files of tests/ that ask for a GPU, and the scripts that check kernels; `--cases` names others.
quality: preset beauty-fast, seed 1, trained and tested in the new tree.
speed: benchmarks of each tree: old, new, old, new, alone on the GPU. ok: the median rate is at least 0.97 of the old
tree's, memory at most 2% more. Printed after each pair, for the pairs so far. `--warm` only fills compilers' caches.
"""

import argparse
import csv
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from safetensors.numpy import load_file
from torch._dynamo.utils import counters, get_compilation_metrics
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]
Result = tuple[str, bool, Row]  # the line that is printed, whether all is well, the row that is kept
LOSS_BOUND = 1e-5
SLOWEST = 0.97
MEMORY = 1.02
STEP = 1148  # windows of a step of beauty-fast on Amazon Beauty
FIRST, LAST = 40, 100  # replays between which kernels are counted: two a step
MODEL, HISTORY = "models/generator/model.safetensors", "reports/history.csv"
SETTINGS = ("params.yaml", "presets/beauty-fast.yaml")
TRAIN = ("-m", "pipeline", "train")
SCRIPTS = ("benchmarks/attention_kernels.py", "benchmarks/kernels_silu.py")
CASES: dict[str, Row] = {
    "t5": {},
    "rastp": {"strategy": "rastp"},
    "intrr": {"strategy": "intrr", "backbone.name": "decoder"},
    "skipgr": {"strategy": "skipgr", "skipgr.apply_to": "both", "skipgr.rescore_every": 2},
    "decoder": {"backbone.name": "decoder"},
    "hstu": {"backbone.name": "hstu"},
}
# Ways to train; all but the last repeat to the byte.
EXACT: tuple[Row, ...] = ({"train.deterministic": True}, {"train.deterministic": True, "train.compile": False}, {})
SMALL: Row = {"backbone.d_model": 32, "backbone.d_ff": 64, "train.threads": 1}
AT_THE_END: Row = {"train.validate_every": 10**6, "train.checkpoint_every": 10**6}


@dataclass(frozen=True)
class RunOutput:
    """A process that ended well."""

    output: str
    seconds: float
    folder: Path

    def read(self, name: str) -> Any:
        text = (self.folder / name).read_text(encoding="utf-8")
        return list(csv.DictReader(text.splitlines())) if name.endswith(".csv") else json.loads(text)


class Session:
    """A session holds what all commands share: two trees, a scratch folder, a deadline, and the file of rows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.lock = threading.Lock()
        self.bad = set[str]()
        self.temporary = tempfile.TemporaryDirectory(prefix="compare-trees-")  # gone with this process
        self.scratch = Path(self.temporary.name)
        self.trees: dict[str, Path] = {"old": args.old, "new": args.new}

    def run(self, name: str, tree: Path, words: Iterable[str], settings: Row, limit: float = 400) -> RunOutput:
        """A Python process of `tree` in a folder of its own, the same one for the same name. Raises RuntimeError."""
        folder = self.scratch / re.sub(r"\W+", "-", name)
        if not folder.exists():
            folder.mkdir()
            if not name.startswith("intrr speed"):  # benchmarks/intrr.py leaves out its rows of Beauty without
                (folder / "data").symlink_to(self.args.data)
            text = yaml.safe_dump(self.params(tree, settings), sort_keys=False)
            (folder / "params.yaml").write_text(text, encoding="utf-8")
        return self.process(name, tree, words, folder, limit)

    def process(self, name: str, tree: Path, words: Iterable[str], folder: Path, limit: float) -> RunOutput:
        """One that is cut off at its limit or at the end of all time, together with the workers that compile for it."""
        began, log = time.monotonic(), self.scratch / f"{threading.get_ident()}.txt"
        left = max(1, round(min(limit, self.began + self.args.seconds - began)))
        command = ["timeout", "-s", "KILL", str(left), "env", f"PYTHONPATH={tree}", sys.executable, *words]
        with log.open("w") as out:
            code = subprocess.run(command, cwd=folder, stdout=out, stderr=out).returncode
        output, seconds = log.read_text(encoding="utf-8", errors="replace"), time.monotonic() - began
        if code:  # 137 or -9: cut off
            raise RuntimeError("\n".join([f"{name}: exit code {code}, {seconds:.0f} s", *output.splitlines()[-25:]]))
        return RunOutput(output, seconds, folder)

    def params(self, tree: Path, settings: Row) -> Row:
        """The tree's params.yaml with its beauty-fast, or with `--small` a small network, and `settings`."""
        params, preset = (yaml.safe_load((tree / file).read_text(encoding="utf-8")) for file in SETTINGS)
        for name, value in ({} if self.args.small else preset).items():
            params[name] = {**params[name], **value} if isinstance(value, dict) else value
        for key, value in {"seed": 1, **(SMALL if self.args.small else {}), **settings}.items():
            *sections, name = key.split(".")
            (params[sections[0]] if sections else params)[name] = value
        return cast(Row, params)

    def all(self, work: Callable[[str], Result], cases: Iterable[str]) -> None:
        """`--jobs` cases at a time; each is recorded as it ends."""

        def guarded(case: str) -> None:
            try:
                self.record(case, *work(case))
            except (RuntimeError, OSError, ValueError, KeyError) as error:  # the others go on
                self.record(case, f"{type(error).__name__}: {error}", False, {"error": str(error)})

        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(guarded, cases))

    def record(self, case: str, line: str, good: bool, row: Row) -> None:
        """Print the line, and append the row; what is said last of a case counts."""
        case = row.get("row", case)
        self.bad = self.bad - {case} if good else self.bad | {case}
        given = {"kind": f"trees {self.args.what}", "command": " ".join(["python", *sys.argv])}
        given |= {"commit": self.args.commit, "hardware": self.args.hardware, "case": case}
        with self.lock, self.args.out.open("a", encoding="utf-8") as file:
            print(f"{case:12} {line}" + ("" if good else "   <-- LOOK"), flush=True)
            file.write(json.dumps({**given, **row}) + "\n")


def identity(session: Session, case: str) -> Result:
    """The same training in both trees."""
    windows = ((300 * STEP, 460_000), (2_500, 60_000))[session.args.small][case == "skipgr"]
    settings = {"train.max_windows": windows, "train.validate_every": 100, "train.select": "loss", **CASES[case]}
    old, mode, refused = exactly(session, case, settings)
    new = session.run(f"{case} new", session.args.new, TRAIN, settings | mode)
    skipped = {name: value for name, value in new.read("reports/timings.json").items() if "skipped" in name}
    row = {"mode": mode, **skipped, **differences(old, new)}
    line = f"{row['verdict']:10}{new.read(HISTORY)[-1]['step']:>4} steps, losses {row['losses_apart']:.1e} apart, "
    line += f"weights {row['weights_apart']:.1e} {skipped or ''}"
    if row["verdict"] != "identical":
        again = session.run(f"{case} again", session.args.old, TRAIN, settings | mode)
        row["old_again"] = differences(old, again)
        line += f"; old again {row['old_again']['verdict']}, {row['old_again']['losses_apart']:.1e}"
    line += refused + (f"; other files: {', '.join(row['others'])}" if row["others"] else "")
    return line, row["verdict"] != "DIFFERENT" and not row["keys"], row


def exactly(session: Session, case: str, settings: Row) -> tuple[RunOutput, Row, str]:
    """A run of the old tree, the way of `EXACT` that it took, and how those before it failed."""
    refused = ""
    for mode in EXACT:
        try:
            return session.run(f"{case} old {mode}", session.args.old, TRAIN, settings | mode), mode, refused
        except RuntimeError as error:
            refused += f"; {mode} failed: {' '.join(str(error).split())[-200:]}"
    raise RuntimeError(refused)


def differences(old: RunOutput, new: RunOutput) -> Row:
    """Compare what two runs left: bytes, losses, weights."""

    def sha256(file: Path) -> str:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "missing"

    files = {str(file.relative_to(ran.folder)) for ran in (old, new) for file in ran.folder.glob("[mr]*/**/*.*")}
    hashes = {name: [sha256(ran.folder / name) for ran in (old, new)] for name in sorted(files)}
    unequal = [name for name, (a, b) in hashes.items() if a != b and name != "reports/timings.json"]
    before, after = (load_file(ran.folder / MODEL) for ran in (old, new))
    shared = [key for key in before.keys() & after.keys() if before[key].shape == after[key].shape]
    curves = old.read(HISTORY), new.read(HISTORY)
    pairs = [(float(a[key]), float(b[key])) for a, b in zip(*curves, strict=False) for key in a if "loss" in key]
    losses, same = max(abs(a - b) for a, b in pairs), MODEL not in unequal and HISTORY not in unequal
    near = losses <= LOSS_BOUND and len(curves[0]) == len(curves[1])
    return {
        "verdict": "identical" if same else "near" if near else "DIFFERENT",
        "losses_apart": losses,
        "weights_apart": max(float(abs(before[key].astype("f8") - after[key]).max()) for key in shared),
        "keys": sorted((before.keys() | after.keys()) - set(shared)),
        "sha256": {name: hashes[name] for name in (MODEL, HISTORY)},
        "others": [name for name in unequal if name not in (MODEL, HISTORY)],
    }


def counts(session: Session, case: str) -> Result:
    """Count what a short training asks of the GPU in both trees."""
    settings = {"train.max_windows": 1_500 if session.args.small else 80 * STEP, **AT_THE_END, **CASES[case]}
    words = (str(Path(__file__).resolve()), "counted", "--out", "counts.json")
    both = [session.run(f"{case} {name}", tree, words, settings) for name, tree in session.trees.items()]
    old, new = ({"steps": ran.read(HISTORY)[-1]["step"], **ran.read("counts.json")} for ran in both)
    (before, after), where = zip(*((tree.pop("by_name"), tree.pop("where")) for tree in (old, new)), strict=True)
    differ = {name: [before.get(name, 0), after.get(name, 0)] for name, _ in before.items() ^ after.items()}
    said = (f"{key} {old[key]}" + (f" -> {new[key]}" if old[key] != new[key] else "") for key in old)
    line = f"{'equal' if old == new else 'NOT EQUAL':10}" + ", ".join(said)
    line += f"; {len(differ)} kernels by name differ" if differ else ""
    return line, old == new, {"equal": old == new, "old": old, "new": new, "by_name": differ, "where": where}


class Watch:
    """Counts what goes by while `pipeline train` runs in this process."""

    def __init__(self) -> None:
        self.calls = Counter[str]()
        self.kernels = Counter[str]()
        self.waits = Counter[str]()

    def see(self, what: str, graph: Any) -> Any:
        if what == "replays" and self.calls[what] in (FIRST, LAST):
            self.turn(self.calls[what] == FIRST)
        self.calls[what] += 1
        return graph

    def turn(self, on: bool) -> None:
        """Begin or end the stretch in which kernels and waits are counted."""
        time.sleep(0.5)  # until the next batch lies ready, so that the stretch has whole steps
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn" if on else "default")
        if on:
            warnings.simplefilter("always")
            warnings.showwarning = self.warned  # type: ignore[assignment]
            self.profile = profile(activities=[ProfilerActivity.CUDA])
            self.profile.start()
        else:
            self.profile.stop()
            ours = [event for event in self.profile.events() or [] if not getattr(event, "is_user_annotation", False)]
            on_gpu = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]  # the module does not list the name
        self.kernels.update(event.name for event in ours if event.device_type == on_gpu)

    def warned(self, message: Any, _category: Any, filename: str, lineno: int, *_: Any) -> None:
        if "called a synchronizing" in str(message):
            self.waits[f"{threading.current_thread().name} {Path(filename).name}:{lineno}"] += 1

    def found(self) -> Row:
        reasons = [metrics.recompile_reason for metrics in get_compilation_metrics() if metrics.recompile_reason]
        return {
            **{what: self.calls[what] for what in ("recordings", "replays")},
            "kernels": sum(self.kernels.values()) or None,
            "compiled": counters["stats"]["unique_graphs"],
            "recompiled": len(reasons),
            "waits": sum(count for index, count in self.waits.items() if index.startswith("MainThread")),
            "by_name": dict(self.kernels),
            "where": [*reasons, *(f"{index}: {count}" for index, count in self.waits.items())],
        }


def counted(out: Path) -> int:
    """Train as `pipeline train` does, in this process, and write what was counted. Returns the exit code."""
    from pipeline.cli import main as command

    graph: Any = torch.cuda.CUDAGraph
    watch = Watch()
    record, replay = graph.capture_begin, graph.replay
    sys.argv = ["sidpipe", "train"]
    graph.capture_begin = lambda instance, *values, **named: record(watch.see("recordings", instance), *values, **named)
    graph.replay = lambda instance: replay(watch.see("replays", instance))
    try:
        command()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        out.write_text(json.dumps(watch.found()), encoding="utf-8")
    return 0


def gpu_tests(tree: Path) -> list[str]:
    """The scripts that check kernels, and files of tests/ that skip something without a GPU."""
    asks = re.compile(r"not torch\.cuda\.is_available\(\)|GPU = torch\.cuda\.is_available\(\)")
    files = sorted((tree / "tests").rglob("test_*.py"))
    return [*SCRIPTS, *(str(file.relative_to(tree)) for file in files if asks.search(file.read_text("utf-8")))]


def tests(session: Session, case: str) -> Result:
    """One file: by pytest, or a script whose exit code says."""
    tree, script = session.args.new, not Path(case).name.startswith("test_")
    words = (case,) if script else ("-m", "pytest", "-q", "-p", "no:cacheprovider", case)
    ran = session.process(case, tree, words, tree, 450)
    last = (ran.output.splitlines() or ["nothing was said"])[-1].strip("= ")
    return f"{last}, {ran.seconds:.0f} s", script or "passed" in last, {"said": last, "seconds": round(ran.seconds)}


def quality(session: Session, case: str) -> Result:
    """Train and test in the new tree."""
    settings = {**CASES[case], **({"train.max_windows": 2_500} if session.args.small else {})}
    for stage in ("train", "evaluate"):
        ran = session.run(f"quality {case}", session.args.new, ("-m", "pipeline", stage), settings, 560)
    row = ran.read("reports/metrics.json")
    line = f"test recall@10 {row['recall_at_10']:.4f} ({row['recall_at_10_low']:.4f} to {row['recall_at_10_high']:.4f})"
    return f"{line}, ndcg@10 {row['ndcg_at_10']:.4f}, {row['users']:,} users, best step {row['best_step']}", True, row


# What a line of each benchmark says: label, rate, GiB (decoding: none).
LINES = (
    r"^(\w+, packed, \d+ a step) +([\d,]+) windows/s.*? ([\d.]+) GiB",
    r"^(\w+ (?:full|intrr)) +([\d,]+) +[\d.]+x +([\d.]+|nan)",
    r"^ *(\d+ +\d+ +(?:constrained|free) +(?:float32|bfloat16)) +[\d.]+ +([\d,]+)()$",
)
# name -> what runs, and with --small; the most important first.
TIMED = {
    "training": ("training.py --rows packed,small --steps 200", "training.py --rows packed --windows 16 --steps 1"),
    "beauty-fast": ("pipeline", "pipeline"),
    "decoding-256": ("decoding.py --batches 256 --beams 50", "decoding.py --batches 8 --beams 2"),
    "intrr": (
        "intrr.py --tables train --devices cuda --networks decoder --steps 200",
        "intrr.py --tables train --devices cpu --networks decoder --windows 8 --steps 1 --items 500",
    ),
    "rastp": ("training.py --rows rastp --steps 200", "training.py --rows rastp --windows 16 --steps 1"),
    "decoding-8": ("decoding.py --batches 8 --beams 10", "decoding.py --batches 1 --beams 2"),
}
Figures = dict[str, tuple[float, float]]  # label -> rate, GiB (nan: not told)


def timed(session: Session, name: str, tree: Path, label: str) -> Figures:
    """One measurement."""
    script, *words = TIMED[name][session.args.small].split()
    settings = {"train.max_windows": 1_500 if session.args.small else 1_500 * STEP, **AT_THE_END}
    command = TRAIN if script == "pipeline" else (str(tree / "benchmarks" / script), *words)
    ran = session.run(f"{name} {label}", tree, command, settings, 240 if session.args.warm else 100)
    if script == "pipeline":
        timings = ran.read("reports/timings.json")
        return {name: (timings["windows_per_second"], timings["peak_memory_gib"])}
    found = [match for line in LINES for match in re.findall(line, ran.output, re.M)] or [("nothing known", "nan", "")]
    rows = ((f"{name}: {' '.join(label.split())}", rate.replace(",", ""), gib or "nan") for label, rate, gib in found)
    return {label: (float(rate), float(gib)) for label, rate, gib in rows}


def speed(session: Session, names: list[str]) -> None:
    """Rounds of all rows, so that a cut-off leaves each of them with the pairs that were done."""
    gathered: dict[str, list[Figures]] = {name: [] for name in names}

    def warm(case: str) -> Result:
        timed(session, case.split()[0], session.trees[case.split()[1]], f"speed warm {case}")
        return f"warm after {time.monotonic() - session.began:.0f} s", True, {}

    def pair(name: str) -> Result:
        gathered[name] += [timed(session, name, tree, f"speed {label}") for label, tree in session.trees.items()]
        *results, last = (verdict(case, gathered[name]) for case in gathered[name][-1])
        for result in results:
            session.record(name, *result)
        return last

    if session.args.warm:
        session.all(warm, [f"{name} {label}" for name in names for label in session.trees])
        return
    session.args.jobs = 1
    for _ in range(session.args.rounds):
        session.all(pair, names)


def verdict(case: str, gathered: list[Figures]) -> Result:
    """Judge the pairs measured so far."""
    old, new = ([figures[case] for figures in gathered[index::2]] for index in (0, 1))
    before, after = (statistics.median(rate for rate, _ in values) for values in (old, new))
    memory = [max(gib for _, gib in values) for values in (old, new)]
    good = after >= SLOWEST * before and not memory[1] > MEMORY * memory[0]  # nan is not more
    line = f"{before:10,.0f} -> {after:10,.0f} a second, {after / before:.3f}, "
    line += f"{memory[0]:.2f} -> {memory[1]:.2f} GiB, pairs {len(old)}: {'ok' if good else 'NOT OK'}"
    rates = {"old": [rate for rate, _ in old], "new": [rate for rate, _ in new], "ratio": after / before}
    return line, good, {"row": case, **rates, "gib": [gib if gib == gib else None for gib in memory], "ok": good}


def main() -> int:
    """Run one command. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["identity", "counts", "tests", "quality", "speed", "counted"])
    for name in ("--old", "--new", "--data"):
        parser.add_argument(name, type=lambda text: Path(text).resolve(), default=Path().resolve())
    parser.add_argument("--out", type=Path, required=True, help="where rows are appended")
    parser.add_argument("--cases", default="", help="some of them, by comma; tests: files")
    for name, value in {"--jobs": 1, "--rounds": 2, "--seconds": 580, "--commit": "", "--hardware": ""}.items():
        parser.add_argument(name, type=type(value), default=value, help=f"default {value!r}")
    for name in ("--warm", "--small"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args()
    if args.what == "counted":  # by `counts`, in a process of its own
        return counted(args.out)
    session = Session(args)
    known = {"tests": gpu_tests(args.new), "quality": ["t5"], "speed": list(TIMED)}.get(args.what, list(CASES))
    cases = args.cases.split(",") if args.cases else known
    if args.what == "speed":
        speed(session, cases)
    else:
        work = {"identity": identity, "counts": counts, "tests": tests, "quality": quality}[args.what]
        session.all(lambda case: work(session, case), cases)
    print(f"{args.what}: {len(session.bad)} to look at, {time.monotonic() - session.began:.0f} s", flush=True)
    return 1 if session.bad else 0


if __name__ == "__main__":
    sys.exit(main())
