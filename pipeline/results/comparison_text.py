"""Write a report of comparisons as text, as Markdown, and as plain values for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.results.arms import Arm
from pipeline.results.compare import NOT_WORSE, Comparison, ComparisonReport, Difference, Table
from pipeline.results.frontier import BEYOND, COSTS, Standing

NOTHING = "compared with nothing"
LEGEND = (
    "detectable: the smallest true difference that would have been told from 0 in four of five repeats",
    f"better: interval above 0. worse: interval below 0; by less than {-NOT_WORSE:.0%} where the relative one says so. "
    f"not worse: relative interval above {NOT_WORSE:.0%}",
    "one seed: the interval covers users alone, and does not tell how much another seed would change",
    "frontier: no other arm of its table has at least this recall@10 (of predicted actions: AUC) in at most these "
    "training seconds. Seconds and speeds hold for the machine and its load. TFLOP: windows trained times a whole "
    "window's operations, counted on some windows of the first step, so that seeds differ by some percent",
)


def comparison_text(report: ComparisonReport) -> str:
    """Return the report as text: which runs, how they were evaluated, a line per metric, and what each arm took."""
    lines: list[str] = []
    for table in report.tables:
        lines += [f"{table.protocol}; 95% intervals"]
        for comparison in table.comparisons:
            lines += ["", _heading(comparison)]
            if comparison.differences:
                lines += [f"  {_COLUMNS}", *(f"  {_line(d, comparison)}" for d in comparison.differences)]
        lines += ["", *_aligned(_costs(table)), ""]
    if len(report.tables) > 1:
        lines += ["Runs of different tables differ in how they were tested, so they are not compared.", ""]
    return "\n".join([*report.notes, *lines, *LEGEND])


def comparison_markdown(report: ComparisonReport) -> str:
    """Return the report as Markdown: for each protocol a table of differences and one of costs."""
    lines: list[str] = []
    for table in report.tables:
        rows = [["arm", "reference", "metric", "reference", "value", "difference", "relative", "verdict"]]
        rows += [
            [
                _arm(comparison.arm),
                _arm(comparison.reference) if comparison.reference else NOTHING,
                d.metric,
                f"{d.reference:.4f}",
                f"{d.value:.4f}",
                f"{d.difference:+.4f} ({d.low:+.4f} to {d.high:+.4f})",
                "too few hits" if d.relative is None else f"{d.relative:+.1%}",
                verdict_words(d, comparison),
            ]
            for comparison in table.comparisons
            for d in comparison.differences
        ]
        heading = [f"### {table.protocol}", ""]
        alone = [f"- {_heading(c)}" for c in table.comparisons if c.reference is None or c.other]
        differences = [*_markdown(rows), ""] if len(rows) > 1 else []
        lines += [*heading, *differences, *_markdown(_costs(table)), "", *alone, ""]
    return "\n".join([*(f"- {note}" for note in report.notes), "", *lines, *(f"{line}.  " for line in LEGEND)]).strip()


def comparison_json(report: ComparisonReport) -> dict[str, Any]:
    """Return the report as plain values: `left_out`, and `tables` with `protocol`, `arms` and `differences`."""
    return {
        "left_out": list(report.notes),
        "tables": [
            {
                "protocol": table.protocol,
                "arms": [
                    {
                        "arm": c.arm.name,
                        "strategy": c.arm.strategy,
                        "backbone": c.arm.backbone,
                        "seeds": list(c.arm.seeds),
                        "runs": [run.name for run in c.arm.runs],
                        "reference": c.reference.name if c.reference else None,
                        "other_settings": list(c.match.differ) if c.match.differ is not None else None,
                        "auc" if standing.predicts else "recall_at_10": standing.recall,
                        "figures": dict(standing.figures),
                        "frontier": standing.frontier,
                    }
                    for c, standing in zip(table.comparisons, table.standings, strict=True)
                ],
                "differences": _rows(table.comparisons),
            }
            for table in report.tables
        ],
    }


def comparison_rows(report: ComparisonReport) -> list[dict[str, Any]]:
    """Return every difference as plain values, one row per arm and metric."""
    return [row for table in report.tables for row in _rows(table.comparisons)]


def verdict_words(difference: Difference, comparison: Comparison) -> str:
    """Return the verdict, with `one seed` where a side has one."""
    return f"{difference.verdict}, one seed" if comparison.one_seed else difference.verdict


def _rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    return [
        {
            "reference_arm": comparison.reference.name,
            "arm": comparison.arm.name,
            "reference_seeds": list(comparison.reference.seeds),
            "seeds": list(comparison.arm.seeds),
            "paired": comparison.paired,
            "one_seed": comparison.one_seed,
            **asdict(difference),
        }
        for comparison in comparisons
        if comparison.reference
        for difference in comparison.differences
    ]


def _heading(comparison: Comparison) -> str:
    """Return the line above the differences of an arm."""
    arm = _arm(comparison.arm)
    if comparison.reference is None:
        return f"{arm}: {_alone(comparison)}"
    other = [comparison.other] if comparison.other else []
    return ", ".join([f"{arm}, against {_arm(comparison.reference)}", *other, _pairing(comparison)])


def _alone(comparison: Comparison) -> str:
    if comparison.is_reference:
        return "the reference"
    if comparison.arm.strategy == "full":
        return f"no other full on backbone {comparison.arm.backbone or 'unknown'}, {NOTHING}"
    return f"no full on backbone {comparison.arm.backbone or 'unknown'} was tested so, {NOTHING}"


def _arm(arm: Arm) -> str:
    """Return `rastp, 3 seeds (1, 2, 3)` or `full, seed 1`."""
    if len(arm.seeds) == 1:
        run = arm.runs[0].name
        named = "" if run in arm.name else f" ({run})"
        return f"{arm.name}, seed {arm.seeds[0]}{named}"
    return f"{arm.name}, {len(arm.seeds)} seeds ({', '.join(map(str, arm.seeds))})"


def _pairing(comparison: Comparison) -> str:
    if comparison.one_seed:
        return "one seed on a side: the intervals do not tell how much another seed would change"
    return "paired by seed" if comparison.paired else "seeds differ, so they are not paired"


_COLUMNS = (
    f"{'':20}{'reference':>10}{'value':>10}{'difference':>12}{'interval':>20}{'relative':>10}"
    f"{'interval':>18}{'detectable':>12}"
)


def _line(d: Difference, comparison: Comparison) -> str:
    relative = f"{'too few hits':>28}"
    if d.relative is not None:
        relative = f"{d.relative:>+10.1%}{f'{d.relative_low:+.1%} to {d.relative_high:+.1%}':>18}"
    return (
        f"{d.metric:20}{d.reference:>10.4f}{d.value:>10.4f}{d.difference:>+12.4f}"
        f"{f'{d.low:+.4f} to {d.high:+.4f}':>20}{relative}{d.detectable:>12.4f}  {verdict_words(d, comparison)}"
    )


def _costs(table: Table) -> list[list[str]]:
    """Return the table of costs: a heading, then a row of cells per arm. A column that no arm has is left out."""
    columns = {
        name: column
        for name, column in {**COSTS, **BEYOND}.items()
        if any(name in standing.figures for standing in table.standings)
    }
    score = "AUC" if table.standings[0].predicts else "recall@10"
    heading = ["cost and quality", score, *(title for title, _ in columns.values()), "frontier"]
    return [heading, *(_cost_cells(standing, columns) for standing in table.standings)]


def _cost_cells(standing: Standing, columns: dict[str, tuple[str, str]]) -> list[str]:
    figures = standing.figures
    cells = [form.format(figures[name]) if name in figures else "-" for name, (_, form) in columns.items()]
    frontier = {True: "yes", False: "no", None: "-"}[standing.frontier]
    return [standing.arm.name, f"{standing.recall:.4f}", *cells, frontier]


def _aligned(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = row
        cells = "".join(f"  {cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first:{widths[0]}}{cells}"


def _markdown(rows: list[list[str]]) -> list[str]:
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
