"""Fill the tables of results, row by row, on a machine that may be taken away at any second.

    python -m benchmarks.campaign FILE --data FOLDER                  # runs what is missing, most wanted first
    python -m benchmarks.campaign FILE --data FOLDER --list           # says what is done, stale and missing
    python -m benchmarks.campaign FILE --data FOLDER --prepare        # makes the Semantic IDs, where faiss is at hand
    python -m benchmarks.campaign FILE --data FOLDER --record FOLDER  # brings results into docs/results and MLflow

campaign_rows.py explains FILE and the folder of data. Each row runs in a process and a folder of its own, and its
result is appended when it has ended; a row that was cut goes on from its checkpoint, or starts anew on another machine.
Rows for quality run several at once on one GPU, a row for cost runs alone. Per-user ranks stay in `ranks/KEY.npz`,
which `python -m pipeline compare` pairs. Running rows needs neither DVC nor MLflow, and faiss only where --prepare did
not run before.
"""

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.campaign_rows import RESULTS, ROOT, Data, Record, Results, Row, read_rows, state
from pipeline.artifacts import Embeddings, fingerprint
from pipeline.errors import UserError
from pipeline.locks import BusyError, alone
from pipeline.manifest import write_bytes
from pipeline.presets.tuning_trial import best_row
from pipeline.printing import say
from pipeline.training.code import code_fingerprint

POLL = 0.2  # seconds between looks at the running processes
PATIENCE = 10  # a run that takes so many times its expected seconds, and MINUTES more, is stopped
MINUTES = 10


@dataclass(kw_only=True)
class Running:
    """A row at work: its process and where it writes."""

    row: Row
    process: "subprocess.Popen[bytes]"
    folder: Path
    since: float
    at_once: int
    limit: float


@dataclass(kw_only=True)
class Campaign:
    """The rows of a file, the data that is at hand, and the results so far.

    known: results of other machines, which count as done; new results go to `results`.
    """

    rows: list[Row]
    data: Path
    results: Results
    known: list[Results]
    work: Path
    commit: str
    engine: str = field(default_factory=lambda: code_fingerprint("train"))
    worker: tuple[str, ...] = ("-m", "benchmarks.campaign_worker")

    def __post_init__(self) -> None:
        self._data: dict[str, Data] = {}

    def data_of(self, row: Row) -> Data | None:
        """Return the prepared inputs of a row; None where they are not here."""
        folder = self.data / row.data
        if not (folder / "splits").is_dir():
            return None
        return self._data.setdefault(row.data, Data(row.data, folder))

    def key(self, row: Row) -> str | None:
        data = self.data_of(row)
        return row.key(data) if data else None

    def records(self) -> list[Record]:
        return [record for results in (*self.known, self.results) for record in results.records()]

    def states(self) -> list[tuple[Row, str, Record | None]]:
        """Return each row with `done`, `stale` or `missing`, and its newest record."""
        records = self.records()
        return [(row, *state(row, records, self.key(row), self.engine)) for row in self.rows]

    def wanted(self, renew: bool) -> list[Row]:
        """Return the rows that are to run, in the file's order; a row that is listed twice runs once."""
        once = {(self.key(row), row.measure): row for row in reversed(self.rows)}
        open_states = ("missing", "stale") if renew else ("missing",)
        return [
            row
            for row, word, _ in self.states()
            if word in open_states and once[self.key(row), row.measure] is row and self.data_of(row)
        ]

    # -------------------------------------------------------------------------------------------------- one row

    def inputs(self, row: Row) -> dict[str, Path]:
        """Make the folders that a row reads: splits with its `split.max_history`, vectors, and Semantic IDs.

        A folder that the row does not read is named, and not made.

        Raises:
            UserError: the data was split otherwise, or faiss is needed for the Semantic IDs and not installed.
        """
        data = self.data_of(row)
        assert data
        data.check(row)
        base = self.work / "inputs" / data.hash_for(row)[:16]
        longest = row.params.split.max_history
        splits, embeddings = base / f"splits-{longest}", base / "embeddings"
        if not (splits / "manifest.json").exists():
            replace(data.splits, summary={**data.splits.summary, "max_history": longest}).write(splits)
        if row.reads_vectors and not (embeddings / "manifest.json").exists():
            Embeddings(data.vectors(), {}).write(embeddings)
        sids = data.folder / "sids" / row.sids_name
        if not row.params.backbone.over_items and not (sids / "manifest.json").exists():
            from pipeline.quantize.stage import run

            say(f"campaign: Semantic IDs of {row.name}")
            seeded = replace(row.params, seed=row.sid_seed)
            run(seeded, embeddings=embeddings, interactions=data.folder / "interactions", splits=splits, output=sids)
        return {
            "interactions": data.folder / "interactions",
            "splits": splits,
            "embeddings": embeddings,
            "sids": sids,
        }

    def start(self, row: Row, at_once: int) -> Running:
        """Start a row in a process of its own; a row for cost starts anew, so that its seconds are those of one run."""
        folder = self.work / f"{self.key(row)}-{row.measure}"
        inputs = {name: str(path.resolve()) for name, path in self.inputs(row).items()}
        trial = {"trial": True} if row.measure == "trial" else {}
        spec = json.dumps({"params": row.params.plain(), "inputs": inputs, "engine": self.engine, **trial}).encode()
        ended = (folder / "result.json").exists()  # but the campaign was cut before it took the result
        same = (folder / "spec.json").exists() and (folder / "spec.json").read_bytes() == spec
        if not same or (row.measure == "cost" and not ended):
            shutil.rmtree(folder, ignore_errors=True)
        write_bytes(folder / "spec.json", spec)
        command = [sys.executable, *self.worker, str(folder.resolve())]
        with (folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT)
        limit = PATIENCE * row.seconds + 60 * MINUTES
        say(f"campaign: starts {row.name}")
        return Running(row=row, process=process, folder=folder, since=time.monotonic(), at_once=at_once, limit=limit)

    def finish(self, running: Running) -> bool:
        """Append the result of a row whose process has ended, and return whether it has one."""
        row, folder = running.row, running.folder
        seconds = time.monotonic() - running.since
        if running.process.returncode != 0 or not (folder / "result.json").exists():
            lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines()
            say(f"campaign: no result of {row.name} ({folder}/log.txt)", *(f"  {line}" for line in lines[-4:]))
            return False
        result = json.loads((folder / "result.json").read_text())
        data = self.data_of(row)
        assert data
        common = {
            "key": row.key(data),
            "settings_key": fingerprint(row.settings),
            "group": row.group,
            "arm": row.arm,
            "seed": row.seed,
            "data": row.data,
            "data_hash": data.hash_for(row),
            "sid_seed": row.sid_seed,
            "presets": list(row.presets),
            "set": dict(row.changes),
            "commit": self.commit,
            "engine": self.engine,
            "hardware": result["hardware"],
            "command": "python -m benchmarks.campaign",
            "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "at_once": running.at_once,
            "process_seconds": round(seconds, 1),
        }
        said = f"campaign: has {row.name}: recall@10 {result['quality']['recall_at_10']:.4f}"
        if row.measure == "trial":
            self.results.append(
                {**common, "measure": "trial", "figures": result["quality"], "history": result["history"]}
            )
            shutil.rmtree(folder, ignore_errors=True)
            say(f"{said} on validation, {seconds:.0f} s")
            return True
        quality = {**common, "measure": "quality", "model": result["model"], "figures": result["quality"]}
        quality |= {"history": result["history"], "counts": _counts(data)}
        # A run that had the machine alone has its quality too, where none is known.
        if row.measure == "quality" or state(replace(row, measure="quality"), self.records(), row.key(data))[1] is None:
            self.results.append(quality, (folder / "ranks.npz").read_bytes())
        if row.measure == "cost":
            self.results.append({**common, "measure": "cost", "figures": result["cost"]})
        shutil.rmtree(folder, ignore_errors=True)
        say(f"{said}, {seconds:.0f} s")
        return True

    # -------------------------------------------------------------------------------------------------- all rows

    def run(self, rows: list[Row], at_once: int, deadline: float) -> int:
        """Run the rows in order, and return how many gave no result; after `deadline` (monotonic) none starts."""
        waiting = list(rows)
        running: list[Running] = []
        failed = 0
        try:
            while waiting or running:
                while waiting and time.monotonic() < deadline and self._may_start(waiting[0], running, at_once):
                    row = waiting.pop(0)
                    if state(row, self.records(), self.key(row), self.engine)[0] == "done":
                        continue  # a row for cost brought its quality meanwhile
                    try:
                        running.append(self.start(row, 1 if row.measure == "cost" else at_once))
                    except UserError as error:
                        failed += 1
                        say(f"campaign: {error}", error=True)
                if waiting and not running and time.monotonic() >= deadline:
                    say(f"campaign: the time is over; {len(waiting)} rows have not begun")
                    return failed
                time.sleep(POLL)
                for one in [one for one in running if self._ended(one)]:
                    running.remove(one)
                    failed += not self.finish(one)
        finally:
            for one in running:
                one.process.kill()
                one.process.wait()
        return failed

    @staticmethod
    def _may_start(row: Row, running: list[Running], at_once: int) -> bool:
        """A row for cost has the machine alone; rows start in the order of the file."""
        if row.measure == "cost" or any(one.row.measure == "cost" for one in running):
            return not running
        return len(running) < at_once

    @staticmethod
    def _ended(one: Running) -> bool:
        if time.monotonic() - one.since > one.limit:
            one.process.kill()
            one.process.wait()
        return one.process.poll() is not None


def _counts(data: Data) -> dict[str, int]:
    splits = data.splits
    return {"users": splits.users, "items": splits.summary["items"], "interactions": len(splits.items_N)}


def expected(row: Row, records: Iterable[Record]) -> float:
    """Return the seconds of the machine that a row needs: measured with another seed, else as the file says.

    Of rows that ran at once, each needed its share.
    """
    for record in reversed(list(records)):
        same = (record["group"], record["arm"], record["data"], record["measure"])
        if same == (row.group, row.arm, row.data, row.measure):
            return float(record["process_seconds"] / record["at_once"])
    return row.seconds


def table(campaign: Campaign) -> str:
    """Return a line per row: its key, state, recall@10 or seconds of training, and the commit."""
    lines = []
    for row, word, record in campaign.states():
        said = word if record or campaign.data_of(row) else "missing, and its data too"
        if record and row.measure == "quality":
            figures = record["figures"]
            dropped = figures.get("seen_dropped_recall_at_10", figures["recall_at_10"])
            said += f": recall@10 {figures['recall_at_10']:.4f} (seen dropped {dropped:.4f}), commit {record['commit']}"
        elif record and row.measure == "trial":
            best = best_row(record["history"], row.params.train.select)
            said += f": recall@10 on validation {best['recall_at_10']:.4f}, commit {record['commit']}"
        elif record:
            figures = record["figures"]
            older = ", by an older engine" if word == "stale" else ""
            said += f": {figures['train_seconds']:.1f} s, {figures['windows_per_second']:,.0f} windows/s, "
            said += f"{figures['peak_memory_gib']:.2f} GiB, commit {record['commit']}{older}"
        lines.append(f"{campaign.key(row) or '-' * 16}  {row.name}: {said}")
    return "\n".join(lines)


def trials_line(rows: Iterable[Row]) -> str:
    """Return how many trials on validation each arm has, and whether all have as many; empty where there are none."""
    counts: dict[str, int] = {}
    for row in rows:
        if row.measure == "trial":
            counts[row.arm] = counts.get(row.arm, 0) + 1
    if not counts:
        return ""
    listed = ", ".join(f"{arm} {count}" for arm, count in counts.items())
    return f"campaign: trials on validation by arm{'' if len(set(counts.values())) == 1 else ', unequal'}: {listed}"


def commit_of(given: str | None) -> str:
    """Return the commit of the code. Raises UserError where nothing says it."""
    if given:
        return given
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+changes", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError("the commit is not known", "a figure carries its commit", "say --commit ID")
    return done.stdout.strip()


def can_share() -> int:
    """Return how many rows for quality run at once if nothing else is said: 6 on a GPU, 1 on a CPU."""
    import torch

    return 6 if torch.cuda.is_available() else 1


def main(arguments: list[str] | None = None) -> int:
    """Run a campaign by the command line, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="YAML list of rows")
    parser.add_argument("--data", type=Path, default=ROOT / "data/campaign", help="folder with a folder per data set")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results go (docs/results)")
    parser.add_argument("--work", type=Path, default=ROOT / ".sidpipe/campaign", help="scratch")
    parser.add_argument("--at-once", type=int, help="rows for quality that share the machine (GPU: 6, CPU: 1)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after these, no further row starts")
    parser.add_argument("--commit", help="of the code, where this is no git checkout")
    parser.add_argument("--renew", action="store_true", help="measure stale costs again")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--list", action="store_true", help="say what is done, stale and missing; run nothing")
    does.add_argument("--prepare", action="store_true", help="make the Semantic IDs; run nothing")
    does.add_argument("--record", type=Path, metavar="FOLDER", help="results of another machine: merge and log them")
    args = parser.parse_args(arguments)
    if args.at_once is not None and args.at_once < 1:
        parser.error("--at-once must be 1 or more")
    return guarded(lambda: _act(args))


def guarded(action: Callable[[], int]) -> int:
    """Do it, and print an error of the user in plain lines."""
    try:
        return action()
    except UserError as error:
        say(f"error: {error}", error=True)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _act(args: Any) -> int:
    began = time.monotonic()
    results = Results(args.results)
    known = [Results(RESULTS)] if args.results.resolve() != RESULTS.resolve() else []
    needs_commit = not (args.list or args.prepare or args.record)
    commit = commit_of(args.commit) if needs_commit else ""
    campaign = Campaign(
        rows=read_rows(args.file), data=args.data, results=results, known=known, work=args.work, commit=commit
    )
    if args.record:
        from benchmarks.campaign_record import record_all

        say(record_all(args.record, results))
    say(table(campaign))
    if line := trials_line(campaign.rows):
        say(line)
    if args.list or args.record:
        missing = [row for row, word, _ in campaign.states() if word == "missing"]
        hours = sum(expected(row, campaign.records()) for row in missing) / 3600
        say(f"campaign: {len(missing)} of {len(campaign.rows)} rows missing, about {hours:.2f} hours one by one")
        return 0
    if args.prepare:
        for row in campaign.rows:
            if campaign.data_of(row):
                campaign.inputs(row)
        return 0
    rows = campaign.wanted(args.renew)
    records = campaign.records()
    hours = sum(expected(row, records) for row in rows) / 3600
    share = args.at_once or can_share()
    say(f"campaign: {len(rows)} rows to run, {hours:.2f} hours of this machine at most; {share} for quality at once")
    args.work.mkdir(parents=True, exist_ok=True)
    try:
        with alone(args.work / "campaign.lock", None):
            return 1 if campaign.run(rows, share, began + args.seconds) else 0
    except BusyError as busy:
        raise UserError(
            f"{busy.holder} runs a campaign in {args.work}",
            "both would run the same rows, and a row for cost would not have the machine alone",
            "wait for its end",
        ) from None


if __name__ == "__main__":
    sys.exit(main())
