"""Find the frontier of quality and cost, and draw it.

A point is on the frontier when nobody is cheaper and better. This file knows no runs, so that `track`, which DVC
watches, depends on little.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.figures import drawing, svg

STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e9ee",
}


@dataclass(frozen=True)
class Point:
    """A point is one model in the drawing: its recall@10 and its training seconds."""

    name: str
    recall: float
    seconds: float


def on_frontier(points: Sequence[Point]) -> list[bool]:
    """Return for each point whether nobody is cheaper and better."""
    return [
        not any(
            other.recall >= point.recall
            and other.seconds <= point.seconds
            and (other.recall, other.seconds) != (point.recall, point.seconds)
            for other in points
        )
        for point in points
    ]


def frontier_svg(points: Sequence[Point], counting: Mapping[str, float] | None = None, transparent: bool = True) -> str:
    """Draw recall@10 against training seconds as an SVG file; equal points give equal text.

    Args:
        points: those on the frontier are filled and joined by a line.
        counting: recall@10 of what is the same for all points, such as counting, by name; each is a dashed line.
        transparent: for a page whose background may be dark; else the drawing has a white one.
    """
    with drawing(STYLE) as axes:
        order = sorted(points, key=lambda point: (point.seconds, point.recall, point.name))
        ahead = [point for point, yes in zip(order, on_frontier(order), strict=True) if yes]
        axes.plot([p.seconds for p in ahead], [p.recall for p in ahead], color="#2f6fed", linewidth=1.2, marker="o")
        behind = [point for point in order if point not in ahead]
        axes.plot([p.seconds for p in behind], [p.recall for p in behind], "o", color="#8896a4", markerfacecolor="none")
        for point in order:
            above = (5, 4) if point in ahead else (5, -12)
            axes.annotate(point.name, (point.seconds, point.recall), xytext=above, textcoords="offset points", size=9)
        for name, recall in (counting or {}).items():
            axes.axhline(recall, linestyle="--", linewidth=1, color="#e8743b")
            axes.annotate(name, (0.01, recall), xycoords=("axes fraction", "data"), va="bottom", size=8)
        axes.set(xlabel="seconds of training", ylabel="recall@10")
        axes.margins(0.15)
        return svg(axes, transparent=transparent)
