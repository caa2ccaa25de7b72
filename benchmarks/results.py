"""Make docs/results.md from docs/results/raw.jsonl: every table of the page; what was not run is printed as missing.

    python benchmarks/results.py                                   # writes docs/results.md
    python benchmarks/results.py --add full=RUN,RUN rastp=RUN,RUN --group NAME --commit ID --hardware H --command C
        # first appends rows: of finished runs (folders with reports/), and of each arm's paired difference to the first

The key `kind` of a row of raw.jsonl names the row's table. Quality rows carry all of metrics.json and details.json.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

RAW, PAGE = Path("docs/results/raw.jsonl"), Path("docs/results.md")
Row = dict[str, Any]
STRATEGIES = ["full", "rastp", "skipgr", "intrr"]
SASREC = ["full", "ids alone", "skipgr", "full, 8,192 sampled negatives"]
# group of runs -> the dataset, and the runs that belong there
QUALITY = {
    "beauty-fast": ("amazon-beauty", ["full", "intrr"]),
    "beauty-fast, several runs on one GPU": ("amazon-beauty", ["full", "rastp", "skipgr"]),
    "beauty-fast, on Sports": ("amazon-sports", STRATEGIES),
    "beauty-fast, backbone decoder": ("amazon-beauty", ["full", "intrr"]),
    "beauty-fast, backbone hstu": ("amazon-beauty", ["full", "intrr"]),
    "beauty-sprint": ("amazon-beauty", ["full"]),
    "sasrec": ("amazon-beauty", SASREC),
    "sasrec, seen items dropped": ("amazon-beauty", SASREC),
    "sasrec on Sports": ("amazon-sports", ["full"]),
    "sasrec on Sports, seen items dropped": ("amazon-sports", ["full"]),
    "beauty-fast, IntRR's ablations": (
        "amazon-beauty",
        ["intrr", "no_teacher_forcing", "no_alignment", "no_redistribution", "no_sharing"],
    ),
    "beauty-fast as it was: 7 M windows, EMA 0.999": ("amazon-beauty", ["full"]),
    "the same, 3.5 M windows": ("amazon-beauty", ["full", "rastp", "rastp-released", "skipgr"]),
}
COUNTING = {"counting pairs": "cooccurrence", "counting pairs by direction": "directed", "popularity": "popularity"}
RECALLS = (0.04, 0.06, 0.08, 0.09, 0.10)  # whose times the page shows
# heading, what stands above the table, kind of its rows, column title -> format of the row
TABLES: list[tuple[str, str, str, dict[str, str]]] = [
    (
        "## The recipe, change by change",
        "Validation recall@10 on Amazon Beauty, beam 10, one seed. A row that begins with a dash names what differs "
        "from the last row without one. Several runs shared a GPU or a machine, so the table has no times. Two choices "
        "are older than the table and came from a study that had looked at test figures: one random start per user and "
        "end (`train.windows: random_start`), and positions by recency (`backbone.recency_items`).",
        "recipe",
        {"change": "{change}", "windows": "{windows}", "recall@10": "{recall:.4f}"},
    ),
    (
        "## Interactions in the Semantic IDs",
        "`quantize.interactions` on Amazon Beauty, preset beauty-fast, one seed ([quantizers.md](quantizers.md) says "
        "what the key does). Validation, beam 10, chose the share; test, beam 50, was read for it and for 0 alone. The "
        "interval of a recall covers users.",
        "interactions",
        {
            "share": "{share:g}",
            "validation recall@10": "{valid_recall_at_10:.4f}",
            "test recall@10": "{test}",
            "test ndcg@10": "{ndcg}",
            "without ties": "{noties}",
        },
    ),
    (
        "## Settings of sasrec, as tried",
        "Validation on Amazon Beauty, seen items dropped, one seed; every run that ended is listed. The first round "
        "has preset sasrec's keys but d_model 256, inputs times 1, and the start of T5's layers; the second has inputs "
        "times 16; the third has layers that start with std 0.02, too. Several runs shared the GPU, so the table has "
        "no times. The best of the third round became the preset, and the test was read once.",
        "sasrec trial",
        {
            "round": "{round}",
            "change": "{change}",
            "recall@10": "{recall:.4f}",
            "ndcg@10": "{ndcg:.4f}",
            "best step": "{best_step:,}",
        },
    ),
    (
        "## Training speed",
        "The windows are those of GRID's sampler (snap-research/GRID; mean history 8.5 items); the network has the "
        "shape of TIGER (Rajput et al. 2023) with separators. GRID's own code, measured elsewhere on the same kind of "
        "GPU and not re-runnable here, trains 6.7 k to 8.2 k windows/s at 417 a step and 11.8 k at 4,096. fed: each "
        "batch is made while the step before runs.",
        "training speed",
        {
            "row": "{row}",
            "windows/s": "{windows_per_second:,.0f}",
            "M tokens/s": "{mtokens_per_second:.2f}",
            "TFLOP/s": "{tflops:.0f}",
            "of peak": "{share_of_peak:.1%}",
            "GiB": "{peak_memory_gib:.2f}",
        },
    ),
    (
        "### What pruning saves",
        "Time of a step of 4,096 windows; `benchmarks/rastp.py` explains the rows. saved: against packed full. limit: "
        "what the matrix products alone would save.",
        "rastp speed",
        {
            "windows": "{windows}",
            "row": "{row}",
            "ms": "{ms:.1f}",
            "saved": "{saved}",
            "limit": "{limit}",
            "against padded full": "{against_padded}",
            "GiB": "{peak_memory_gib:.2f}",
        },
    ),
    (
        "### What skipping saves",
        "Time of an epoch over Beauty; `benchmarks/skipgr.py` explains the columns.",
        "skipgr speed",
        {
            "row": "{row}",
            "sequences": "{sequences}",
            "tokens": "{tokens}",
            "FLOPs": "{flops}",
            "seconds": "{seconds}",
            "speed-up": "{speedup}",
            "bookkeeping": "{bookkeeping}",
        },
    ),
    (
        "### One token per item",
        "IntRR's Table 2, measured here: 512 samples a step, one target each; `benchmarks/intrr.py` explains the rows.",
        "intrr speed",
        {
            "histories": "{histories}",
            "row": "{row}",
            "samples/s": "{samples_per_second:,.0f}",
            "gain": "{gain}",
            "GiB of a step": "{step_gib:.3f}",
            "of full": "{of_full}",
        },
    ),
    (
        "### More GPUs",
        "`preset beauty-fast`: training and evaluation with one process per GPU.",
        "scaling",
        {
            "GPUs": "{gpus}",
            "positions a step": "{batch_tokens:,}",
            "windows/s": "{windows_per_second:,.0f}",
            "users/s": "{users_per_second:,.0f}",
        },
    ),
    (
        "## Decoding speed",
        "The network has the shape of TIGER, the histories are Beauty's. GRID's own code, unconstrained, decodes 1.3 k "
        "users/s at beam 50 and batch 256, and takes 24 ms at beam 10 and batch 8.",
        "decoding",
        {
            "batch": "{batch}",
            "beam": "{beam}",
            "search": "{decoding}",
            "precision": "{precision}",
            "ms a batch": "{ms:.2f}",
            "users/s": "{users_per_second:,.0f}",
        },
    ),
    (
        "### Recommendations for all users",
        "Wall time of the whole command, the start of Python included. first: the first run of a beam width on a "
        "machine, which compiles its kernels.",
        "batch recommendations",
        {
            "users": "{users:,}",
            "beam": "{beam}",
            "seen items": "{seen}",
            "run": "{run}",
            "seconds": "{seconds:.1f}",
        },
    ),
    (
        "### One token per item, decoding",
        "IntRR's Table 3, measured here: ms a batch, by beam width. full reads 32 items (SAC) or 8 (SSL), intrr 32.",
        "intrr latency",
        {
            "network": "{network}",
            "batch": "{batch}",
            "row": "{row}",
            **{f"{beam}": f"{{beam_{beam}:.2f}}" for beam in (10, 15, 20, 25, 30, 50)},
        },
    ),
    (
        "## Quantizers",
        "[quantizers.md](quantizers.md) explains the columns.",
        "quantizer",
        {
            "data": "{data}",
            "method": "{row}",
            "colliding": "{collision_rate:.1%}",
            "largest group": "{largest_group}",
            "codes used": "{used_codes}",
            "perplexity": "{perplexity}",
            "error": "{relative_reconstruction_error:.3f}",
            "neighbours": "{neighbour_agreement}",
            "categories": "{category_agreement}",
            "CPU s": "{cpu_seconds:.0f}",
        },
    ),
    (
        "## Encoders",
        "The architectures have their published sizes and random weights.",
        "encoder",
        {"model": "{row}", "items/s": "{items_per_second:,.0f}", "of peak": "{share_of_peak:.1%}"},
    ),
    (
        "## Before and after the code was moved",
        "`benchmarks/compare_trees.py` compares the tree at commit ab439d4 with a later one. The first table compares "
        "the weights and the loss curve of 300 deterministic steps (skipgr: 355). old again: the old tree's losses "
        "against those of a second run of the old tree.",
        "trees identity",
        {
            "case": "{case}",
            "commit": "{commit}",
            "bytes": "{verdict}",
            "losses apart": "{losses_apart:.0e}",
            "old again": "{old_again}",
        },
    ),
    (
        "### What a step launches",
        "Counts over 80 steps of training, of kernels over 30 of these steps; old -> new. waits: how often the main "
        "thread waits for the GPU; it reads the losses every 20 steps.",
        "trees counts",
        {
            "case": "{case}",
            "commit": "{commit}",
            "recordings": "{old[recordings]} -> {new[recordings]}",
            "recompiled": "{old[recompiled]} -> {new[recompiled]}",
            "waits": "{old[waits]} -> {new[waits]}",
            "kernels": "{old[kernels]:,} -> {new[kernels]:,}",
        },
    ),
    (
        "### Speed",
        "Processes of the old and the new tree run by turns, alone on the GPU. The table has the median of each tree, "
        "and the ratio of the medians.",
        "trees speed",
        {
            "case": "{case}",
            "commit": "{commit}",
            "old, a second": "{old_rate:,.0f}",
            "new, a second": "{new_rate:,.0f}",
            "ratio": "{ratio:.3f}",
            "all readings, old; new": "{span}",
            "GiB": "{old_gib} -> {new_gib}",
        },
    ),
]


def quality(rows: list[Row]) -> Iterable[str]:
    """Yield one line per group and strategy: means over seeds, and the paired difference to the group's first."""

    def on(dataset: str) -> list[Row]:
        groups = [group for group, (data, _) in QUALITY.items() if data == dataset]
        return [row for row in rows if row.get("kind") == "quality" and row["group"] in groups]

    for group, (dataset, arms) in QUALITY.items():
        yield f"\n### {group}\n"
        yield (
            "| strategy | seeds | recall@10 | ndcg@10 | without ties | against the first, recall@10 | training | "
            "windows/s | tokens trained | memory |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        selected = [row for row in rows if row.get("kind") == "quality" and row["group"] == group]
        paired = {row["arm"]: row for row in rows if row.get("kind") == "paired" and row["group"] == group}
        for arm in arms:
            yield _quality_line(arm, [row for row in selected if row["arm"] == arm], paired.get(arm))
        if selected:
            for label, name in COUNTING.items():
                keys = (f"{name}_recall_at_10", f"{name}_ndcg_at_10", f"noties_{name}_recall_at_10")
                # Counting has no seed and nothing of a model: any row of the dataset will do. Earlier rows lack keys.
                first = next((row for row in [*selected, *on(dataset)] if keys[0] in row), selected[0])
                cells = ["missing" if (value := first.get(key)) is None else f"{value:.4f}" for key in keys]
                yield f"| {label}{_rule(first, name)} | - | {' | '.join(cells)} | | | | | |"
            first = selected[0]
            ranking = first.get("ranking", f"beam {first['beam']}, constrained")
            yield f"\n{dataset}, {first['users']:,} users, {ranking}.\n"
            yield from _origins(selected)


def _quality_line(arm: str, rows: list[Row], paired: Row | None) -> str:
    if not rows:
        return f"| {arm} | missing | missing | | | | | | | |"

    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in rows]))

    recalls = [row["recall_at_10"] for row in rows]
    spread = f" ({min(recalls):.4f} to {max(recalls):.4f})" if len(rows) > 1 else ""
    against = "" if paired is None else "{difference:+.4f} ({low:+.4f} to {high:+.4f}), {verdict}".format(**paired)
    has_ties = all("noties_recall_at_10" in row for row in rows)
    no_ties = f"{mean('noties_recall_at_10'):.4f}" if has_ties else "no ties"
    timed = [row for row in rows if row["timed"]]
    times = (
        f"{timed[0]['train_seconds']:.0f} s | {timed[0]['windows_per_second']:,.0f}"
        if timed
        else "missing: the GPU was shared | "
    )
    return (
        f"| {arm}{_rule(rows[0], '')} | {len(rows)} | {mean('recall_at_10'):.4f}{spread} | {mean('ndcg_at_10'):.4f} | "
        f"{no_ties} | {against} | {times} | "
        f"{mean('tokens_trained') / 1e6:.0f} M | "
        f"{mean('peak_memory_gib'):.1f} GiB |"
    )


def _rule(row: Row, name: str) -> str:
    """Return the rule for seen items, where the row says it; `name`: of a baseline, empty for the model."""
    dropped = row.get(f"{name}_seen_dropped" if name else "seen_dropped")
    return "" if dropped is None else ", seen dropped" if dropped else ", seen included"


def time_to_recall(rows: list[Row]) -> Iterable[str]:
    """Yield the seconds of optimizer steps until validation first reached a recall, as means over timed seeds."""
    selected = [row for row in rows if row.get("kind") == "quality" and row["timed"] and row.get("curve")]
    if not selected:
        yield "missing"
        return
    yield "| runs | " + " | ".join(f"{recall:.2f}" for recall in RECALLS) + " | best |\n|" + "---|" * (2 + len(RECALLS))
    for group, arm in dict.fromkeys((row["group"], row["arm"]) for row in selected):
        runs = [row for row in selected if (row["group"], row["arm"]) == (group, arm)]
        cells = []
        for recall in RECALLS:
            windows = [next((windows for windows, reached in row["curve"] if reached >= recall), None) for row in runs]
            seconds = [count / row["windows_per_second"] for count, row in zip(windows, runs, strict=True) if count]
            of_all = "" if len(seconds) == len(runs) else f" ({len(seconds)} of {len(runs)})"
            cells.append(f"{np.mean(seconds):.0f} s{of_all}" if seconds else "")
        best = np.mean([max(reached for _, reached in row["curve"]) for row in runs])
        yield f"| {group}: {arm}, {len(runs)} seed{'s' * (len(runs) > 1)} | " + " | ".join(cells) + f" | {best:.4f} |"


def measured(rows: list[Row], kind: str, columns: dict[str, str]) -> Iterable[str]:
    """Yield a table of the rows of one kind: column title -> format of the row."""
    selected = [row for row in rows if row.get("kind") == kind and not row.get("superseded")]
    if not selected:
        yield "missing"
        return
    yield "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)
    for row in selected:
        shown = {key: _Blank() if value is None else value for key, value in row.items()}
        yield "| " + " | ".join(text.format(**shown) for text in columns.values()) + " |"
    yield ""
    yield from _origins(selected)


class _Blank:
    """A value that does not apply to a row; it is blank in any format."""

    def __format__(self, _: str) -> str:
        return ""


def _origins(rows: list[Row]) -> Iterable[str]:
    """Yield where the rows of a table come from, each origin once."""
    origins = {(row["hardware"], row["commit"], row["command"]): None for row in rows}
    yield from (f"{hardware}, commit {commit}: `{command}`  " for hardware, commit, command in origins)


def page(rows: list[Row]) -> str:
    """Return the whole document."""
    lines = [
        "# Results",
        "",
        "This page has every table of measurements, with its commands, commits and hardware, for a reader who wants",
        "to check or repeat a figure. `python benchmarks/results.py` makes the page from",
        "[results/raw.jsonl](results/raw.jsonl). The pages of the strategies ([rastp](rastp.md), [skipgr](skipgr.md),",
        "[intrr](intrr.md)) and of [the engine](engine.md) say what the figures mean.",
        "",
        "A row without figures was not run: *missing*. A *window* is one training example. A recall over several",
        "seeds is their mean, with the lowest and highest seed in brackets.",
        "",
        "## Quality",
        "",
        "The metrics are those of test users, each with one test item (leave-one-out). *without ties*: recall@10 of",
        "users whose test item shares its timestamp with no earlier interaction. *against the first*: the paired",
        "difference to the first row, with its 95% interval over seeds and users (`python -m pipeline compare`); with",
        "one seed the interval covers users alone. *better*: the interval is above 0. *not worse*: the interval of",
        "the relative difference is above -3%. *worse*: the interval is below 0 (*by less than 3%*: the relative",
        "interval is above -3%). *unclear*: none of these. *counting pairs* (co-occurrence) and *popularity* learn",
        "nothing. *EMA*: decay of the averaged weights, which are evaluated. A row names its rule for *seen items*,",
        "those of the history; in rows that do not, the models rank them too, and counting drops them.",
        *quality(rows),
    ]
    lines += [
        "",
        "## Time to a recall",
        "",
        "Seconds of optimizer steps (without compilation and validation) until validation recall@10, beam 10, "
        "first reached the value; validation runs every 3,300 steps (sprint: 600, sasrec: 160). *best*: the best of a "
        "run, as the mean over seeds.",
        "",
        *time_to_recall(rows),
    ]
    for heading, text, kind, columns in TABLES:
        lines += ["", heading, "", *([text, ""] if text else []), *measured(rows, kind, columns)]
    return "\n".join(lines) + "\n"


def add(args: argparse.Namespace) -> list[Row]:
    """Return rows of finished runs, and of each arm's paired difference to the first."""
    from pipeline.results.compare import compare
    from pipeline.results.comparison_text import comparison_rows
    from pipeline.results.ranks import Ranks

    arms = {
        name: [Path(folder) / "reports" for folder in folders.split(",")]
        for name, folders in (text.split("=") for text in args.add)
    }
    found: list[Row] = []
    for arm, folders in arms.items():
        for reports in folders:
            origin = Ranks.read(reports / "ranks.parquet").origin
            curve = pd.read_csv(reports / "history.csv")[["windows", "recall_at_10"]]
            found.append(
                {
                    "kind": "quality",
                    "group": args.group,
                    "arm": arm,
                    "seed": origin.seed,
                    "beam": origin.beam,
                    "command": args.command,
                    "commit": args.commit,
                    "hardware": args.hardware,
                    "timed": not args.shared,
                    **json.loads((reports / "metrics.json").read_text()),
                    **json.loads((reports / "details.json").read_text()),
                    "curve": curve.to_numpy().tolist(),
                }
            )
    named = [
        f"{arm}=" + ",".join(str(reports / "ranks.parquet") for reports in folders) for arm, folders in arms.items()
    ]
    if len(named) > 1:
        found += [
            {
                "kind": "paired",
                "group": args.group,
                **{key: row[key] for key in ("arm", "metric", "difference", "low", "high", "verdict", "seeds")},
            }
            for row in comparison_rows(compare(named))
            if row["metric"] == "recall_at_10"
        ]
    return found


def main() -> None:
    """Append rows if asked to, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", nargs="*", default=[], help="NAME=RUN,RUN")
    parser.add_argument("--shared", action="store_true", help="they shared their GPU, so that their times say little")
    for name in ("commit", "hardware", "command", "group"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    if args.add:
        with RAW.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in add(args))
    PAGE.write_text(page([json.loads(line) for line in RAW.read_text().splitlines()]))


if __name__ == "__main__":
    main()
