"""Make the tables and drawings of docs/scale.md from the rows of docs/results/scale.jsonl."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.scale.measure import ROOT
from pipeline.figures import drawing, svg

PAGE = ROOT / "docs/scale.md"
DRAWINGS = ROOT / "docs/assets/scale"
BEGIN, END = "<!-- made by python -m benchmarks.scale page -->", "<!-- end -->"
Row = dict[str, Any]
# stage -> what its work grows with: the key of a row, and its name
SIZES = {
    "ingest": ("events", "rows of the log"),
    "embed": ("items", "items"),
    "split": ("interactions_left", "interactions"),
    "count": ("interactions_left", "interactions"),
    "quantize": ("items_left", "items"),
    "train": ("interactions_left", "interactions"),
    "evaluate": ("users_left", "users"),
}
COLUMNS = (
    "",
    "log",
    "settings",
    "size",
    "CPU s",
    "exponent",
    "wall s",
    "peak MiB",
    "without maps",
    "output MiB",
    "commit",
)
PATHS = ("ingest.path", "embed.path")  # settings that name a file of the measured machine


def write_page(rows: Sequence[Row]) -> None:
    """Replace the part of docs/scale.md between its two marks, and write a drawing for each stage."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(rows)}\n{END}{after}")
    DRAWINGS.mkdir(parents=True, exist_ok=True)
    for stage in stages(rows):
        (DRAWINGS / f"{stage}.svg").write_text(plot(stage, series(rows, stage)))


def stages(rows: Sequence[Row]) -> list[str]:
    """Return the stages that have rows, in the order of SIZES."""
    return [stage for stage in SIZES if any(row["stage"] == stage for row in rows)]


def series(rows: Sequence[Row], stage: str) -> dict[tuple[str, str, str], list[Row]]:
    """Return (label, form of the log, settings) -> rows by size; of equal measurements the last one counts."""
    size = SIZES[stage][0]
    found: dict[tuple[str, str, str], dict[tuple[int, int], Row]] = defaultdict(dict)
    for row in rows:
        if row["stage"] == stage:
            key = (row["label"], row["format"], settings_text(row))
            found[key][row[size], row["items"]] = row
    order = {"before": 0, "after": 1}
    keys = sorted(found, key=lambda key: (key[2], key[1], order.get(key[0], 2)))
    return {key: [found[key][at] for at in sorted(found[key])] for key in keys}


def settings_text(row: Row) -> str:
    """Return the settings that differ from the defaults, without paths."""
    shown = {key: value for key, value in row["settings"].items() if key not in PATHS}
    width = [f"width {row['width']}"] if row["stage"] in ("embed", "quantize") else []
    return ", ".join([*width, *(f"{key.partition('.')[2]}={value}" for key, value in sorted(shown.items()))])


def exponents(rows: Sequence[Row], size: str) -> list[float | None]:
    """Return for each row the growth of CPU seconds since the row before: 1 means that twice the size takes twice."""
    found: list[float | None] = [None]
    for before, row in itertools.pairwise(rows):
        grown = math.log(row[size] / before[size])
        found.append(math.log(row["cpu_seconds"] / before["cpu_seconds"]) / grown if grown else None)
    return found[: len(rows)]


def tables(rows: Sequence[Row]) -> str:
    """Return a heading, a drawing and a table for each stage."""
    lines: list[str] = []
    for stage in stages(rows):
        size, noun = SIZES[stage]
        lines += [
            f"### {stage}",
            "",
            f"![CPU seconds of {stage} by {noun}, both on logarithmic axes](assets/scale/{stage}.svg)",
        ]
        lines += ["", f"Size: {noun}.", "", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        for (label, form, settings), measured in series(rows, stage).items():
            for row, exponent in zip(measured, exponents(measured, size), strict=True):
                cells = [
                    label,
                    form,
                    settings,
                    f"{row[size]:,}",
                    f"{row['cpu_seconds']:,.1f}",
                    "" if exponent is None else f"{exponent:.2f}",
                    f"{row['wall_seconds']:,.0f}",
                    f"{row['peak_rss_mib']:,}",
                    f"{row['peak_anonymous_mib']:,}",
                    f"{row['output_mib']:,.0f}",
                    row["commit"],
                ]
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    machines = sorted({row["hardware"] for row in rows})
    low, high = (round(find(row["load"] for row in rows)) for find in (min, max))
    lines.append(
        f"Hardware: {'; '.join(machines)}. The load average after a measurement was {low} to {high}: other programs "
        "ran beside, so that wall seconds say little."
    )
    return "\n".join(lines)


def plot(stage: str, measured: dict[tuple[str, str, str], list[Row]]) -> str:
    """Return CPU seconds by size on logarithmic axes as SVG, with a dotted line that grows as the size does."""
    size, noun = SIZES[stage]
    with drawing() as axes:
        for (label, form, settings), rows in measured.items():
            name = ", ".join(filter(None, (label, form if stage == "ingest" else "", settings)))
            style = "--" if label == "before" else "-"
            axes.plot([r[size] for r in rows], [r["cpu_seconds"] for r in rows], style, marker="o", label=name)
        points = [row for rows in measured.values() for row in rows]
        first, last = min(r[size] for r in points), max(r[size] for r in points)
        lowest = min(r["cpu_seconds"] for r in points)
        axes.plot([first, last], [lowest, lowest * last / first], ":", color="gray", label="as the size")
        axes.set(xscale="log", yscale="log", xlabel=noun, ylabel="CPU seconds")
        axes.legend(fontsize=6)
        return svg(axes)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]
