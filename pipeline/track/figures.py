"""The page's drawings, as SVG text that is equal for equal numbers."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

INK, SOFT = "#1f2933", "#8896a4"
COLOURS = ("#2f6fed", "#e8743b", "#19a979", "#945ecf")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "sidpipe",  # names inside the SVG would otherwise be random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
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
    """Columns of the history over training windows; `columns` maps each to its name in the legend."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.1))
        windows = [row["windows"] for row in history]
        marker = "o" if len(history) < 30 else None
        for colour, (column, label) in zip(COLOURS, columns.items(), strict=False):
            axes.plot(windows, [row[column] for row in history], color=colour, label=label, marker=marker, markersize=3)
        axes.set(xlabel="training windows", ylabel=ylabel)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value else "0")
        return _svg(figure)


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str = "recall@10") -> str:
    """Grouped bars, one group per label: each of `series` is one colour."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.1))
        width = 0.8 / len(series)
        for index, (name, values) in enumerate(series.items()):
            places = [place + (index - (len(series) - 1) / 2) * width for place in range(len(labels))]
            axes.bar(places, values, width * 0.92, color=COLOURS[index], label=name)
        axes.set_xticks(range(len(labels)), labels)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.grid(axis="x", visible=False)
        return _svg(figure)


def _svg(figure: Any) -> str:
    """With the legend above the drawing, where it hides nothing."""
    figure.axes[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
    text = io.StringIO()
    figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]
