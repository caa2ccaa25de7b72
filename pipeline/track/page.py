"""Render reports/index.html, one self-contained page about one result. Equal results give equal bytes."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from pipeline.metric_names import MAIN_METRICS, METRICS, OVER_ITEMS, how_ranked
from pipeline.results.frontier_points import Point, frontier_svg
from pipeline.results.identity import Result
from pipeline.results.parameters import value_text
from pipeline.track.action_page import action_drawings, action_facts, action_protocol, action_table
from pipeline.track.action_scoreboard import predicts_actions
from pipeline.track.figures import bars, curves
from pipeline.track.scoreboard import Cell, has_ties, headings, scoreboard_rows

SERIES = {
    "model": "recall_at_10",
    "popularity": "popularity_recall_at_10",
    "co-occurrence": "cooccurrence_recall_at_10",
}
STYLE = """
:root {
  --ink: #1f2933; --soft: #5b6b7c; --line: #e4e9ee; --accent: #2f6fed; --page: #f5f7f9; --card: #fff;
  color-scheme: light dark
}
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 60px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 16px; margin: 0 0 10px } p { margin: 4px 0 }
.soft { color: var(--soft) } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
pre { background: var(--page); border-radius: 6px; padding: 10px 12px; margin: 8px 0 0; overflow-x: auto }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px }
section { margin-top: 16px; min-width: 0 }
.two, .facts { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)) }
.two section { margin-top: 0 } .two { margin-top: 16px }
.facts { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); margin-top: 16px }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px }
.facts b { display: block; font-size: 22px; font-variant-numeric: tabular-nums }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left } th { color: var(--soft); font-weight: 500 }
.group th { text-align: center } tr.model td { font-weight: 600; color: var(--accent) }
td small { display: block; font-weight: 400; color: var(--soft) } svg { display: block; width: 100%; height: auto }
summary { cursor: pointer; font-weight: 600 }
.scroll { overflow-x: auto }
@media (max-width: 600px) {
  main { padding: 16px 10px 40px } section { padding: 14px 12px } th, td { padding: 5px 6px } h1 { font-size: 22px }
  table { font-size: 13px }
}
/* The figures are drawn dark on nothing: inverted, their lines and letters are light, and hues stay. */
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e9ef; --soft: #9fb0c0; --line: #33414f; --accent: #82aaff; --page: #11181f; --card: #1b252f }
  svg { filter: invert(0.9) hue-rotate(180deg) }
}
"""
COMPARE = """dvc exp run --temp -S strategy=NAME           # another way of training, everything else equal
dvc exp run --queue -S seed=1,42,999 && dvc queue start
dvc exp show --only-changed --drop '.*/.*|[^.]*_' --keep '(recall|ndcg)_at_10|train_seconds'
dvc metrics diff && dvc plots diff            # your files, or an experiment that you name, against the last commit
python -m pipeline compare                    # each strategy against full on its backbone, user by user"""


def render_page(result: Result, params: dict[str, Any], known: Sequence[Point] = ()) -> str:
    """Return the page's HTML.

    Args:
        params: flat, `{"train.beam": 10, ...}`.
        known: results of the project that were tested as this one was, itself included.
    """
    title = f"{params['strategy']} on {params['dataset']}, seed {params['seed']}"
    parts = _of_actions(result, params) if predicts_actions(result.metrics) else _of_items(result, params, known)
    body = [
        f"<h1>{escape(title)}</h1>",
        *parts,
        _section("Compare", f"<pre>{escape(COMPARE)}</pre>"),
        _details("Parameters", ((key, value_text(value)) for key, value in params.items())),
        _details("Content hashes", (("this result", result.key), *result.hashes.items())),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _of_items(result: Result, params: dict[str, Any], known: Sequence[Point]) -> list[str]:
    """Return the parts about a model that ranks items."""
    return [
        f'<p class="soft">{_protocol(result, params)}</p>',
        _facts(result.metrics),
        _section("Test metrics", _scoreboard(result.metrics, params["strategy"]) + _notes(result.metrics)),
        _section("Beyond hits: the first ten items", _beyond(result.metrics)),
        _frontier(result.metrics, known),
        '<div class="two">' + _figures(result) + "</div>",
    ]


def _of_actions(result: Result, params: dict[str, Any]) -> list[str]:
    """Return the parts about a model that predicts actions."""
    figures = "".join(_section(title, drawing) for title, drawing in action_drawings(result).items())
    return [
        f'<p class="soft">{action_protocol(result, params)}</p>',
        _boxes([*action_facts(result.metrics), *_costs(result.metrics)]),
        _section("Test metrics", action_table(result.metrics, params["strategy"])),
        f'<div class="two">{figures}</div>',
    ]


def _protocol(result: Result, params: dict[str, Any]) -> str:
    """Return the line that says on what data and how the result was evaluated."""
    counts = result.dataset
    metrics = result.metrics
    seen = "seen items dropped" if metrics["seen_dropped"] else "seen items included"
    searched = how_ranked(
        params["evaluate.ranking"],
        beam=params["evaluate.beam"],
        decoding=params["evaluate.decoding"],
        over_items=params["backbone.name"] in OVER_ITEMS,
    )
    return escape(
        f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions · "
        f"{params['split.protocol'].replace('_', ' ')}, {_tested_on(metrics)} · "
        f"{searched}, {seen}"
    )


def _tested_on(metrics: dict[str, float]) -> str:
    of_all = f" of {metrics['users_in_all']:,.0f}, a sample" if "users_in_all" in metrics else ""
    return f"{metrics['users']:,.0f} test users{of_all}"


def _all_or_sampled(metrics: dict[str, float]) -> str:
    return f"{'a sample of' if 'users_in_all' in metrics else 'all'} {metrics['users']:,.0f} users"


def _facts(metrics: dict[str, float]) -> str:
    """Return the boxes with the few numbers to remember."""
    facts = [(f"{metrics['recall_at_10']:.4f}", "recall@10"), (f"{metrics['ndcg_at_10']:.4f}", "NDCG@10")]
    facts += [
        (f"{metrics['recall_at_10'] / metrics[key]:.1f}×", f"{label} recall@10")
        for label, key in list(SERIES.items())[1:]
        if metrics.get(key)
    ]
    return _boxes([*facts, *_costs(metrics)])


def _costs(metrics: dict[str, float]) -> list[tuple[str, str]]:
    speed = f"{metrics['windows_trained']:,.0f} windows, {metrics['windows_per_second']:,.0f} a second"
    parameters = (f"{metrics['parameters'] / 1e6:.2f} M", "parameters")
    return [(f"{metrics['train_seconds']:,.0f} s", speed), parameters]


def _boxes(facts: Iterable[tuple[str, str]]) -> str:
    boxes = "".join(f'<div><b>{value}</b><span class="soft">{label}</span></div>' for value, label in facts)
    return f'<div class="facts">{boxes}</div>'


def _scoreboard(metrics: dict[str, float], strategy: str) -> str:
    """Return the table of the model and the baselines; the model is the first row."""
    apart = f'<th colspan="{len(MAIN_METRICS)}">{metrics["noties_users"]:,.0f} users without ties</th>'
    groups = (
        f'<tr class="group"><th></th><th colspan="{len(METRICS)}">{_all_or_sampled(metrics)}</th>'
        f"{apart if has_ties(metrics) else ''}</tr>"
    )
    heads = "<tr><th></th>" + "".join(f"<th>{heading}</th>" for heading in headings(metrics)) + "</tr>"
    lines = []
    for rank, row in enumerate(scoreboard_rows(metrics, strategy)):
        kind = ' class="model"' if rank == 0 else ""
        lines.append(f"<tr{kind}><td>{escape(row.system)}</td>" + "".join(map(_cell, row.cells)) + "</tr>")
    return f'<div class="scroll"><table>{groups}{heads}{"".join(lines)}</table></div>'


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    interval = f"<small>{cell.interval[0]:.4f} to {cell.interval[1]:.4f}</small>" if cell.interval else ""
    return f"<td>{cell.value:.4f}{interval}</td>"


def _notes(metrics: dict[str, float]) -> str:
    return (
        f'<p class="soft">Small: 95% bootstrap interval over users. A tie: the test item shares its timestamp '
        f"with an earlier one ({metrics['tie_share']:.1%} of users). Recall@10 of the right codes, whatever the "
        f"deduplication digit: {metrics['bucket_recall_at_10']:.4f}. Generated SIDs that name no item: "
        f"{metrics['invalid_rate']:.2%}. Validation chose step {metrics['best_step']:,.0f}.</p>"
    )


BEYOND = {  # key -> label, format
    "coverage_at_10": ("of the catalogue is in the first ten of somebody", "{:.1%}"),
    "long_tail_share_at_10": ("of what is shown is long tail", "{:.1%}"),
    "long_tail_share_of_targets": ("of the test targets is long tail", "{:.1%}"),
    "popularity_bias_at_10": ("times as popular as the targets is what is shown", "{:.2f}"),
    "novelty_at_10": ("bits of novelty", "{:.1f}"),
    "category_diversity_at_10": ("of the pairs in a top ten differ in category", "{:.1%}"),
    "code_diversity_at_10": ("of the pairs differ in the first code", "{:.1%}"),
    "expected_recall_at_10": ("recall@10 that the beam's probabilities promise", "{:.4f}"),
    "calibration_error_at_10": ("calibration error of that promise", "{:.4f}"),
}


def _beyond(metrics: dict[str, float]) -> str:
    """Return the boxes about the first ten items of all users."""
    boxes = [
        f'<div><b>{form.format(metrics[key])}</b><span class="soft">{escape(label)}</span></div>'
        for key, (label, form) in BEYOND.items()
        if key in metrics
    ]
    note = (
        '<p class="soft">The long tail is every item but the most popular ones, which together have 80% of the '
        "training interactions. Novelty is the mean of -log2 of an item's share of these interactions.</p>"
    )
    return f'<div class="facts">{"".join(boxes)}</div>{note}'


def frontier_drawing(metrics: dict[str, float], known: Sequence[Point], transparent: bool = True) -> str:
    """Return the SVG file of quality against cost, with counting and the dense retriever as lines."""
    beside = {"co-occurrence": "cooccurrence_recall_at_10", "dense retriever": "dense_recall_at_10"}
    return frontier_svg(known, {name: metrics[key] for name, key in beside.items() if key in metrics}, transparent)


def _frontier(metrics: dict[str, float], known: Sequence[Point]) -> str:
    """Return the drawing of quality against cost; nothing where no other result is known."""
    if len(known) < 2:
        return ""
    text = frontier_drawing(metrics, known)
    note = (
        f'<p class="soft">{len(known)} results of this project that were tested alike. Filled, with a line: the '
        "frontier, nobody is cheaper and better. Seconds hold for the machine and its load.</p>"
    )
    return _section("Quality against cost", text[text.index("<svg") :] + note)


def _figures(result: Result) -> str:
    scores = {"recall_at_10": "recall@10", "ndcg_at_10": "NDCG@10"}
    return "".join(
        [
            _section(
                "Loss",
                curves(
                    result.history,
                    {"train_loss": "training", "valid_loss": "validation"},
                    "cross-entropy, summed over levels",
                ),
            ),
            _section("Validation", curves(result.history, scores, _validated_on(result.metrics))),
            _section("By length of history", _breakdown(result.by_history, "items in the history")),
            _section("By popularity of the test item", _breakdown(result.by_popularity, "interactions in training")),
            _kept(result.kept_by_level),
            _section("Semantic IDs", _sids(result.sid_levels)),
        ]
    )


def _validated_on(metrics: dict[str, float]) -> str:
    if "valid_users" not in metrics:
        return "on all validation users"
    return f"on a sample of {metrics['valid_users']:,.0f} of {metrics['valid_users_in_all']:,.0f} validation users"


def _kept(table: list[dict[str, str]]) -> str:
    """Return the section on kept tokens; nothing where all tokens are kept."""
    kept = [float(row["kept"]) for row in table]
    if min(kept) == 1:
        return ""
    drawing = bars([row["level"] for row in table], {"kept": kept}, "tokens of validation histories", "share")
    return _section("Tokens that the encoder keeps", drawing)


def _sids(table: list[dict[str, str]]) -> str:
    """Draw for each level the codes in use and the perplexity: so many codes, used equally, would be as uncertain."""
    series = {
        name: [float(row[column]) for row in table]
        for name, column in (("codes used", "used_codes"), ("perplexity", "perplexity"))
    }
    return bars([row["level"] for row in table], series, "deduplication digit left aside", "codes")


def _breakdown(table: list[dict[str, str]], xlabel: str) -> str:
    """Draw bars over the table's first column, one series per system that the table has."""
    first = next(iter(table[0]))
    series = {name: [float(row[column]) for row in table] for name, column in SERIES.items() if column in table[0]}
    return bars([row[first].strip() for row in table], series, xlabel)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _details(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td><code>{escape(value)}</code></td></tr>" for key, value in pairs
    )
    return f"<section><details><summary>{escape(title)}</summary><table>{lines}</table></details></section>"
