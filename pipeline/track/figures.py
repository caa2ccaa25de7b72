"""Draw the page's figures: curves over training and grouped bars, as SVG elements that are equal for equal numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.figures import drawing, svg

INK = "#1f2933"  # text
SOFT = "#66788a"  # ticks
COLOURS = ("#2f6fed", "#e8743b", "#19a979", "#945ecf")
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#d5dce3",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eef1f4",
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
}


def curves(history: Sequence[Mapping[str, float]], columns: Mapping[str, str], ylabel: str) -> str:
    """Draw columns of the history over training windows; `columns` maps each to its name in the legend."""
    with drawing(STYLE) as axes:
        windows = [row["windows"] for row in history]
        marker = "o" if len(history) < 30 else None
        for colour, (column, label) in zip(COLOURS, columns.items(), strict=False):
            axes.plot(windows, [row[column] for row in history], color=colour, label=label, marker=marker, markersize=3)
        axes.set(xlabel="training windows", ylabel=ylabel)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        return _element(axes)


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str = "recall@10") -> str:
    """Draw grouped bars, one group per label; each of `series` has one colour."""
    with drawing(STYLE) as axes:
        width = 0.8 / len(series)
        for index, (name, values) in enumerate(series.items()):
            positions = [position + (index - (len(series) - 1) / 2) * width for position in range(len(labels))]
            axes.bar(positions, values, width * 0.92, color=COLOURS[index], label=name)
        axes.set_xticks(range(len(labels)), labels)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(axis="x", visible=False)
        return _element(axes)


def _element(axes: Any) -> str:
    """Return the `<svg>` element, with the legend above the drawing, so that it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    text = svg(axes, transparent=True)
    return text[text.index("<svg") :]
