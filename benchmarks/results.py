"""Make docs/results.md, a page per paper and the picture of quality against cost; what was not run prints as missing.

    python -m benchmarks.results                                   # writes the pages and docs/frontier.svg
    python -m benchmarks.results --add full=RUN,RUN rastp=RUN,RUN --group NAME --commit ID --hardware H --command C
        # first appends rows: of finished runs (folders with reports/), and of each arm's paired difference to the first

All of it comes from docs/results/raw.jsonl, and from docs/results/campaign.jsonl where a campaign has written it. So do
two tables of docs/actions.md, whose other lines are written by hand. The
key `kind` of a row of raw.jsonl names the row's table. Quality rows carry all of metrics.json and details.json.
"""

import argparse
import collections
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.campaign_rows import RESULTS, Results
from benchmarks.campaign_rows import Row as CampaignRow
from benchmarks.items_tables import actions_page, figure_rows, paired_rows
from benchmarks.measured import CAMPAIGNS, Measured, Row, cell, of_campaigns, of_trials, references
from benchmarks.papers import paper_page
from benchmarks.papers_figures import PAPERS
from benchmarks.picture import picture
from benchmarks.results_tables import QUALITY, RECALLS, TABLES

RAW, PAGE = Path("docs/results/raw.jsonl"), Path("docs/results.md")
ACTIONS = Path("docs/actions.md")
OVER_ITEMS = CAMPAIGNS / "5-items.yaml"
PICTURE = Path("docs/frontier.svg")
SHOWN = ("seen_dropped_recall_at_10", "ndcg_at_10", "noties_recall_at_10")


def quality(rows: list[Row]) -> Iterable[str]:
    """Yield one line per group and strategy: means over seeds, and the paired difference to the group's first."""
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
            # Counting has no seed and nothing of a model. Runs of before a key existed take its row of the dataset.
            for one in references(rows, dataset, selected, 50 if group.startswith("sasrec") else 20):
                if one.name.startswith("SASRec") and group.startswith("sasrec"):
                    continue
                figures = " | ".join(cell(value) for value in (one.recall, one.ndcg, one.noties))
                yield f"| {one.name} | {one.seeds} | {figures} | | | | | |"
            first = selected[0]
            ranking = first.get("ranking", f"beam {first['beam']}, constrained")
            yield f"\n{dataset}, {first['users']:,} users, {ranking}.\n"
            yield from _origins(selected)


def trials(found: list[tuple[CampaignRow, Row | None]]) -> Iterable[str]:
    """Yield the trials on validation that choose the settings of the campaigns' arms."""
    counts = collections.Counter(row.arm for row, _ in found)
    yield "\n### Trials on validation\n"
    yield f"Listed by arm: {', '.join(f'{arm} {count}' for arm, count in counts.items())}. The test is not read.\n"
    yield "| arm | settings | recall@10 on validation | commit |\n|---|---|---|---|"
    for row, best in found:
        said = f"{best['recall_at_10']:.4f} | {best['commit']}" if best else "missing |"
        yield f"| {row.arm} | {row.words} | {said} |"


def campaigns(arms: list[Measured], rows: list[Row]) -> Iterable[str]:
    """Yield a table per group of the campaigns, with every arm that their files list, run or not."""
    for group, data in dict.fromkeys((one.group, one.data) for one in arms):
        yield f"\n### {group}, {data}\n"
        yield (
            "| arm | seeds | recall@10 | seen dropped | ndcg@10 | without ties | against `full`, recall@10 | "
            "training | windows/s |\n|---|---|---|---|---|---|---|---|---|"
        )
        own = [one for one in arms if (one.group, one.data) == (group, data)]
        for one in own:
            figures = " | ".join(cell(one.mean(key)) for key in SHOWN)
            yield f"| {one.arm} | {one.seeds} | {one.recall} | {figures} | {one.against} | {one.time} |"
        for beside in references(rows, data):
            figures = f"{cell(beside.recall)} | | {cell(beside.ndcg)} | {cell(beside.noties)}"
            yield f"| {beside.name} | {beside.seeds} | {figures} | | | |"
        yield ""
        yield from _origins([row for one in own for row in (*one.rows, *([one.cost] if one.cost else []))])
        if hours := sum(one.hours for one in own):
            yield f"Missing rows need about {hours:.1f} hours of a GPU, run one by one.  "


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
        f"| {arm}{_rule(rows[0])} | {len(rows)} | {mean('recall_at_10'):.4f}{spread} | {mean('ndcg_at_10'):.4f} | "
        f"{no_ties} | {against} | {times} | "
        f"{mean('tokens_trained') / 1e6:.0f} M | "
        f"{mean('peak_memory_gib'):.1f} GiB |"
    )


def _rule(row: Row) -> str:
    """Return the rule for seen items, where the row says it."""
    dropped = row.get("seen_dropped")
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
    yield from _origins([row for row in selected if row.get("commit")])


class _Blank:
    """A value that does not apply to a row; it is blank in any format."""

    def __format__(self, _: str) -> str:
        return ""


def _origins(rows: list[Row]) -> Iterable[str]:
    """Yield where the rows of a table come from, each origin once."""
    origins = {(row["hardware"], row["commit"], row["command"]): None for row in rows}
    yield from (f"{hardware}, commit {commit}: `{command}`  " for hardware, commit, command in origins)


def page(rows: list[Row], arms: list[Measured], tried: list[tuple[CampaignRow, Row | None]]) -> str:
    """Return the whole document.

    Args:
        rows: of raw.jsonl, and those of items_tables.py.
        arms: those of the campaigns but for networks over items.
        tried: their trials, with the best validation of each that was run.
    """
    lines = [
        "# Results",
        "",
        "This page has every table of measurements, with its commands, commits and hardware, for a reader who wants",
        "to check or repeat a figure. `python -m benchmarks.results` makes the page from",
        "[results/raw.jsonl](results/raw.jsonl). The pages of the strategies ([rastp](rastp.md), [skipgr](skipgr.md),",
        "[intrr](intrr.md)) and of [the engine](engine.md) say what the figures mean.",
        "",
        "A row without figures was not run: *missing*. *older engine*: a time that was measured with other code of",
        "training than today's. A *window* is one training example. A recall over several",
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
        "those of the history; in rows that do not, the models rank them too, and counting drops them. *SASRec* and",
        "*fused views* stand below each table, by their own recipes ([sasrec](sasrec.md), [fusion](fusion.md)); a page",
        "for each paper sets its figures beside ours: [SkipGR](results/skipgr.md), [RASTP](results/rastp.md),",
        "[IntRR](results/intrr.md).",
        "",
        "![recall@10 against seconds of training, one kind of machine and one commit](frontier.svg)",
        *quality(rows),
    ]
    lines += [
        "",
        "## Campaigns",
        "",
        "Every row of `benchmarks/campaigns/` ([campaign.md](campaign.md)), run or not; those of `5-items.yaml` are",
        "[below](#rows-of-the-campaign). *recall@10*: by the row's settings, which leave items of the history in the",
        "ranking; *seen dropped*: without them. *training*: the seconds of a row that had the machine alone.",
        *campaigns(arms, rows),
        *trials(tried),
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
    from pipeline.manifest import unsealed
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
            details = reports / "details.json"
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
                    **unsealed(details, json.loads(details.read_text()), "evaluate"),
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


def documents() -> dict[Path, str]:
    """Return every file that is made of the results, by its path."""
    rows = [json.loads(line) for line in RAW.read_text(encoding="utf-8").splitlines()]
    results = Results(RESULTS)
    arms = of_campaigns(results, [path for path in sorted(CAMPAIGNS.glob("*.yaml")) if path != OVER_ITEMS])
    over_items = of_campaigns(results, [OVER_ITEMS], paired=False)
    pages = {RAW.parent / f"{paper.name}.md": paper_page(paper, rows, arms) for paper in PAPERS}
    paired = paired_rows(over_items, results)
    actions = actions_page(ACTIONS.read_text(encoding="utf-8"), over_items, paired, rows)
    whole = page([*rows, *figure_rows(over_items), *paired], arms, of_trials(results))
    return {PAGE: whole, PICTURE: picture(rows, arms), ACTIONS: actions, **pages}


def main() -> None:
    """Append rows if asked to, and write the pages and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--add", nargs="*", default=[], help="NAME=RUN,RUN")
    parser.add_argument("--shared", action="store_true", help="they shared their GPU, so that their times say little")
    for name in ("commit", "hardware", "command", "group"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    if args.add:
        with RAW.open("a") as stream:
            stream.writelines(json.dumps(row) + "\n" for row in add(args))
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
