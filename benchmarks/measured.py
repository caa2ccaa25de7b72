"""Collect what was measured of each arm of a comparison: rows of docs/results/raw.jsonl, and results of campaigns.

An arm is one way of training in a group of runs. Rows of a campaign are found by the settings of its file, so that a
result of other settings, which once stood in the file, is no result of today's row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.campaign_rows import ROOT, Record, Results, read_rows, records_of, state
from benchmarks.campaign_rows import Row as CampaignRow
from pipeline.presets.tuning_trial import best_row
from pipeline.results.arms import Arm, protocol_of
from pipeline.results.compare import differences
from pipeline.results.runs import read_run
from pipeline.training.code import code_fingerprint

CAMPAIGNS = ROOT / "benchmarks/campaigns"
METRIC = "recall_at_10"
SAMPLES = 2000  # resamples behind an interval
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A `Measured` holds what is known of an arm.

    rows: a row per seed that was run, with metrics, seed, commit, hardware and command. wanted: seeds that the campaign
    lists; 0 where the rows are of no campaign. paired: difference of recall@10 to `full` of its group, with low, high
    and verdict. unpaired: why there is none, where both have runs. cost: a row that had the machine alone, the newest.
    earlier: such rows of before. stale: the cost is that of an older engine. hours: what the missing rows need, by the
    campaign's estimates.
    """

    group: str
    arm: str
    data: str
    rows: list[Row] = field(default_factory=list)
    wanted: int = 0
    paired: Row | None = None
    unpaired: str = ""
    cost: Row | None = None
    earlier: list[Row] = field(default_factory=list)
    stale: bool = False
    hours: float = 0.0

    def mean(self, key: str) -> float | None:
        """Return the mean over the seeds; None where a row lacks the key, or there is no row."""
        values = [row.get(key) for row in self.rows]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known and len(known) == len(values) else None

    @property
    def seeds(self) -> str:
        """Return how many seeds were run, and of how many a campaign wants."""
        if not self.rows:
            return "missing"
        return f"{len(self.rows)} of {self.wanted}" if self.wanted > len(self.rows) else str(len(self.rows))

    @property
    def recall(self) -> str:
        """Return the mean recall@10, with the lowest and highest seed in brackets."""
        mean = self.mean(METRIC)
        if mean is None:
            return "missing"
        values = [row[METRIC] for row in self.rows]
        return f"{mean:.4f}" + (f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else "")

    @property
    def against(self) -> str:
        """Return the paired difference to `full`, with its interval and verdict."""
        if self.paired is None:
            return self.unpaired
        return "{difference:+.4f} ({low:+.4f} to {high:+.4f}), {verdict}".format(**self.paired)

    @property
    def time(self) -> str:
        """Return seconds of training and windows a second, as two cells of a table."""
        if self.cost is None:
            return "missing: never alone on the GPU | " if self.rows else "missing | "
        older = ", older engine" if self.stale else ""
        return f"{self.cost['train_seconds']:.0f} s{older} | {self.cost['windows_per_second']:,.0f}"


def of_raw(rows: Sequence[Row], group: str, arm: str, data: str) -> Measured:
    """Return the arm as the rows of raw.jsonl have it."""
    own = [row for row in rows if row.get("kind") == "quality" and (row["group"], row["arm"]) == (group, arm)]
    paired = [row for row in rows if row.get("kind") == "paired" and (row["group"], row["arm"]) == (group, arm)]
    timed = [row for row in own if row["timed"]]
    return Measured(
        group=group,
        arm=arm,
        data=data,
        rows=own,
        paired=paired[-1] if paired else None,
        cost=timed[0] if timed else None,
        stale=bool(timed),  # such a row does not say by which engine; all are older than the first campaign
    )


def of_campaigns(results: Results, files: Iterable[Path] | None = None, *, paired: bool = True) -> list[Measured]:
    """Return every arm of the campaigns, in the order of their files, run or not.

    Args:
        files: those of benchmarks/campaigns/ by default.
        paired: add each arm's difference to `full`.
    """
    rows = [row for path in (sorted(CAMPAIGNS.glob("*.yaml")) if files is None else files) for row in read_rows(path)]
    records = results.records()
    engine = code_fingerprint("train")
    found = [(row, *state(row, records, None, engine)) for row in rows]
    names = dict.fromkeys((row.group, row.arm, row.data) for row in rows if row.measure != "trial")
    arms = [
        _of_rows(*name, [one for one in found if (one[0].group, one[0].arm, one[0].data) == name], records)
        for name in names
    ]
    if not paired:
        return arms
    full = {(one.group, one.data): one for one in arms if one.arm == "full"}
    return [_with_difference(one, full.get((one.group, one.data)), results) for one in arms]


def of_trials(results: Results, files: Iterable[Path] | None = None) -> list[tuple[CampaignRow, Row | None]]:
    """Return every trial of the campaigns with its best validation and commit; None where it was not run."""
    records = results.records()
    found: list[tuple[CampaignRow, Row | None]] = []
    for path in sorted(CAMPAIGNS.glob("*.yaml")) if files is None else files:
        for row in read_rows(path):
            if row.measure == "trial":
                record = state(row, records, None, "")[1]
                best = best_row(record["history"], row.params.train.select) if record else None
                found.append((row, {**best, "commit": record["commit"]} if best and record else None))
    return found


def _of_rows(
    group: str, arm: str, data: str, found: list[tuple[CampaignRow, str, Record | None]], records: Sequence[Record]
) -> Measured:
    quality = [(row, record) for row, _, record in found if row.measure == "quality"]
    costs = [(word, _flat(record)) for row, word, record in found if row.measure == "cost" and record]
    timed = [_flat(record) for row, *_ in found if row.measure == "cost" for record in records_of(row, records, None)]
    return Measured(
        group=group,
        arm=arm,
        data=data,
        rows=[_flat(record) for _, record in quality if record],
        wanted=len(quality),
        cost=costs[-1][1] if costs else None,
        earlier=timed[:-1],
        stale=bool(costs) and costs[-1][0] == "stale",
        hours=sum(row.seconds for row, _, record in found if not record) / 3600,
    )


def _flat(record: Record) -> Row:
    history = record.get("history", [])
    return {**record["figures"], **record, "curve": [[point["windows"], point[METRIC]] for point in history]}


def _with_difference(one: Measured, full: Measured | None, results: Results) -> Measured:
    """Add the paired difference to `full`, over the seeds that both have, where their ranks are stored.

    Runs that were tested in another way are not compared, as `python -m pipeline compare` has it.
    """
    if full is None or full is one:
        return one
    sides = [{row["seed"]: results.ranks(row["key"]) for row in side.rows} for side in (full, one)]
    seeds = sorted(seed for seed in sides[0] if seed in sides[1] and all(side[seed].exists() for side in sides))
    if not seeds:
        return one
    if all(sides[0][seed] == sides[1][seed] for seed in seeds):
        return replace(one, unpaired="the same runs as `full`")
    arms = [
        Arm(name, tuple(read_run(str(side[seed])) for seed in seeds)) for name, side in zip("ab", sides, strict=True)
    ]
    if len({protocol_of(run) for arm in arms for run in arm.runs}) > 1:
        return replace(one, unpaired="not compared: tested in another way")
    found = next(d for d in differences(*arms, samples=SAMPLES, seed=0) if d.metric == METRIC)
    paired = {name: getattr(found, name) for name in ("difference", "low", "high", "verdict")}
    return replace(one, paired={**paired, "seeds": seeds})


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference is a model beside the strategies: counting, SASRec, or the fused views. A missing figure is None."""

    name: str
    seeds: str
    recall_5: float | None = None
    recall: float | None = None
    ndcg: float | None = None
    noties: float | None = None


COUNTING = {"counting pairs": "cooccurrence", "counting pairs by direction": "directed", "popularity": "popularity"}
# Where no row counted, the fusion's table did, by the same windows.
VIEWS = {
    "counting pairs": "counting",
    "counting pairs by direction": "counting by direction",
    "popularity": "popularity",
}
SASREC = {"amazon-beauty": "sasrec", "amazon-sports": "sasrec on Sports"}


def references(rows: Sequence[Row], data: str, own: Sequence[Row] = (), max_history: int = 20) -> list[Reference]:
    """Return what stands below every table of a dataset: counting, SASRec by both rules for seen items, fused views.

    Args:
        rows: of raw.jsonl.
        own: rows of the table, which have their own counting; what they lack comes from other rows of the dataset.
        max_history: items of the histories of these other rows.
    """
    alike = [row for row in rows if (row.get("dataset"), row.get("max_history")) == (data, max_history)]
    fused = [row for row in rows if (row.get("kind"), row.get("data")) == ("fusion", data)]
    views = {row["ranking"]: row for row in fused if not row.get("superseded")}
    found = []
    for name, key in COUNTING.items():
        first = next((row for row in [*own, *alike] if f"{key}_{METRIC}" in row), {})
        if not first and name in VIEWS and VIEWS[name] in views:
            found.append(_view(f"{name}, seen dropped", "-", views[VIEWS[name]]))
            continue
        dropped = first.get(f"{key}_seen_dropped")
        rule = "" if dropped is None else ", seen dropped" if dropped else ", seen included"
        found.append(
            Reference(
                name=name + rule,
                seeds="-",
                recall_5=first.get(f"{key}_recall_at_5"),
                recall=first.get(f"{key}_{METRIC}"),
                ndcg=first.get(f"{key}_ndcg_at_10"),
                noties=first.get(f"noties_{key}_{METRIC}"),
            )
        )
    for rule, suffix in (("seen included", ""), ("seen dropped", ", seen items dropped")):
        sasrec = of_raw(rows, SASREC.get(data, "") + suffix, "full", data)
        found.append(
            Reference(
                name=f"SASRec, {rule}",
                seeds=sasrec.seeds,
                recall_5=sasrec.mean("recall_at_5"),
                recall=sasrec.mean(METRIC),
                ndcg=sasrec.mean("ndcg_at_10"),
                noties=sasrec.mean(f"noties_{METRIC}"),
            )
        )
    last = views.get("fused, floored")
    seeds = str(len(last["seeds"].split(","))) if last else "missing"
    return [*found, _view("fused views, seen dropped", seeds, last or {})]


def _view(name: str, seeds: str, row: Row) -> Reference:
    """Return a row of the fusion's table as a reference."""
    figures = {key: row.get(key) for key in ("recall_5", "recall", "ndcg", "noties")}
    return Reference(name=name, seeds=seeds, **figures)


def cell(value: float | None) -> str:
    """Return a metric as a cell of a table."""
    return "missing" if value is None else f"{value:.4f}"
