"""Find the frontier of quality and cost, and draw it.

A point is on the frontier when nobody is cheaper and better. This file knows no runs, so that `track`, which DVC
watches, depends on little.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.figures import drawing, svg

Box = tuple[float, float, float, float]
LETTER = 0.56  # mean width of a letter over the size of the font
NEARER = 4  # 1/72 inch that a name is nearer to its point than to any other
PARTS = 12  # of a line between two points, that names avoid
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


def frontier_svg(
    points: Sequence[Point],
    counting: Mapping[str, float] | None = None,
    transparent: bool = True,
    note: Sequence[str] = (),
) -> str:
    """Draw recall@10 against training seconds as an SVG file; equal points give equal text.

    Args:
        points: those on the frontier are filled and joined by a line.
        counting: recall@10 of what is the same for all points, such as counting, by name; each is a dashed line.
        transparent: for a page whose background may be dark; else the drawing has a white one.
        note: lines of text below the drawing.
    """
    with drawing(STYLE) as axes:
        order = sorted(points, key=lambda point: (point.seconds, point.recall, point.name))
        ahead = [point for point, yes in zip(order, on_frontier(order), strict=True) if yes]
        axes.plot([p.seconds for p in ahead], [p.recall for p in ahead], color="#2f6fed", linewidth=1.2, marker="o")
        behind = [point for point in order if point not in ahead]
        axes.plot([p.seconds for p in behind], [p.recall for p in behind], "o", color="#8896a4", markerfacecolor="none")
        lines = counting or {}
        for name, recall in lines.items():
            axes.axhline(recall, linestyle="--", linewidth=1, color="#e8743b")
            axes.annotate(name, (0.01, recall), xycoords=("axes fraction", "data"), va="bottom", size=8)
        axes.set(xlabel="seconds of training", ylabel="recall@10")
        axes.margins(0.15)
        if note:
            axes.annotate("\n".join(note), (0, -40), xycoords="axes points", va="top", size=7.5, color="#66788a")
        _name(axes, order, ahead, lines)
        return svg(axes, transparent=transparent)


def _name(axes: Any, points: Sequence[Point], ahead: Sequence[Point], lines: Mapping[str, float]) -> None:
    """Write each point's name beside it, where it hides least, and join both by a thin line.

    Boxes are (left, bottom, right, top) in 1/72 inch, by the mean width of a letter. A name had better cross a line
    than be nearer to another point, and do that rather than lie on a point or on a name.

    Args:
        ahead: the points that a line joins, in its order.
        lines: the dashed lines, whose names begin at the left.
    """
    axes.autoscale_view()
    to_points = 72 / axes.figure.dpi

    def place(seconds: float, recall: float) -> tuple[float, float]:
        x, y = axes.transData.transform((seconds, recall)) * to_points
        return float(x), float(y)

    (left, bottom), (right, top) = (axes.transAxes.transform(end) * to_points for end in ((0, 0), (1, 1)))
    dots = [place(point.seconds, point.recall) for point in points]
    hidden = [(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    crossed: list[Box] = []
    for one, other in itertools.pairwise(ahead):
        for part in range(PARTS):
            share = (part + 0.5) / PARTS
            x, y = place(
                one.seconds + share * (other.seconds - one.seconds), one.recall + share * (other.recall - one.recall)
            )
            crossed.append((x - 1, y - 1, x + 1, y + 1))
    for name, recall in lines.items():
        y = place(0, recall)[1]
        hidden.append((left, y, left + 8 * LETTER * len(name), y + 9))
        crossed.append((left, y - 1, right, y + 1))
    for point, (x, y) in zip(points, dots, strict=True):
        width = 9 * LETTER * len(point.name)
        # The frontier rises to the right, so that its line is below no name on the lower right.
        sides = [(dx, dy) for dy in (-12, 4, -22, 14, -32, 24) for dx in (5, -5 - width, -width / 2)]
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + 9) for dx, dy in sides]
        met = [
            6 * sum(_meet(box, other) for other in hidden)
            + 3 * any(_apart(box, dot) < _apart(box, (x, y)) + NEARER for dot in dots if dot != (x, y))
            + any(_meet(box, other) for other in crossed)
            + 20 * (box[0] < left or box[2] > right or box[1] < bottom or box[3] > top)
            for box in boxes
        ]
        best = met.index(min(met))
        hidden.append(boxes[best])
        axes.annotate(
            point.name,
            (point.seconds, point.recall),
            xytext=sides[best],
            textcoords="offset points",
            size=9,
            arrowprops={"arrowstyle": "-", "color": "#b3bec9", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3},
        )


def _meet(one: Box, other: Box) -> bool:
    """Return whether two boxes have a common point."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _apart(box: Box, dot: tuple[float, float]) -> float:
    """Return the distance of a point from a box."""
    return math.hypot(max(box[0] - dot[0], dot[0] - box[2], 0), max(box[1] - dot[1], dot[1] - box[3], 0))
