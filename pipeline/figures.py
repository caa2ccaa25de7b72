"""Make drawings as SVG text that is equal for equal numbers. matplotlib is loaded when the first one is drawn."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SIZE = (5.6, 3.1)  # inches
REPEATABLE = {
    "svg.hashsalt": "sidpipe",  # names inside the SVG would otherwise be random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


@contextmanager
def drawing(style: Mapping[str, Any] | None = None) -> Iterator[Any]:
    """Give empty matplotlib axes to draw on and to hand to `svg`, and close them at the end.

    Args:
        style: settings of matplotlib, added to REPEATABLE.
    """
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    settings: dict[Any, Any] = {**REPEATABLE, **(style or {})}
    with plt.rc_context(settings):
        figure, axes = plt.subplots(figsize=SIZE)
        try:
            yield axes
        finally:
            plt.close(figure)


def svg(axes: Any, transparent: bool = False) -> str:
    """Return the whole SVG file of what was drawn, without a date."""
    text = io.StringIO()
    axes.figure.savefig(text, format="svg", bbox_inches="tight", transparent=transparent, metadata={"Date": None})
    return text.getvalue()
