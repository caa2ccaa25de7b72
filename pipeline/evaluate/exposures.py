"""Measure on the test exposures what the means of items and users alone predict of each label (docs/actions.md).

A network that predicts actions has to beat these figures.

Shape legend: X exposures.
"""

from pathlib import Path

import numpy as np

from pipeline.artifacts import SPLITS
from pipeline.evaluate.action_means import fit_means
from pipeline.evaluate.exposure_metrics import by_length, measure
from pipeline.exposures import Exposures
from pipeline.printing import shown

FIGURES = ("auc", "gauc", "wgauc", "log_loss", "calibration")
HEADINGS = ("AUC", "GAUC", "wGAUC", "log loss", "calibration", "positive", "users with both")


def exposure_table(folder: Path = SPLITS) -> str:
    """Return the figures of each label as lines of text; empty where the splits have no exposures.

    The regression is fitted to the training exposures; validation and test have no part in it.
    """
    exposures = Exposures.read(folder)
    if exposures is None:
        return ""
    train, test = exposures.part("train"), exposures.part("test")
    if not (len(train) and len(test)):
        return "exposures: none for training or none for test, so that no chance of an action is measured"
    users_X, items_X = exposures.users_X(), np.asarray(exposures.items_X, np.int64)
    earlier_X = np.arange(len(users_X)) - np.asarray(exposures.offsets)[users_X]
    users, items = len(exposures.offsets) - 1, int(items_X.max()) + 1
    labels = exposures.actions.labels
    width = max(24, *(len(shown(label.name)) + 2 for label in labels))
    lines = [
        f"{len(test):,} test exposures, predicted by a regression on item and user means; -: one class only",
        " " * width + "".join(f"{heading:>{len(heading) + 4}}" for heading in HEADINGS),
    ]
    for label in labels:
        answers_X = np.asarray(exposures.actions_XA[:, label.column]) >= label.least
        fitted = fit_means(users_X[train], items_X[train], answers_X[train], users, items)
        chances = fitted.chances(users_X[test], items_X[test])
        lines.append(_line(shown(label.name), measure(users_X[test], answers_X[test], chances), width))
        groups = by_length(users_X[test], answers_X[test], chances, earlier_X[test])
        if len(groups) > 1:
            lines += [_line(f"  {name} exposures before", figures, width) for name, figures in groups.items()]
    return "\n".join(lines)


def _line(name: str, figures: dict[str, float | int], width: int) -> str:
    cells = [f"{figures[figure]:.4f}" if figure in figures else "-" for figure in FIGURES]
    cells += [f"{figures['positives'] / figures['exposures']:.1%}", f"{figures['users_with_both']:,}"]
    return f"{name:<{width}}" + "".join(
        f"{cell:>{len(heading) + 4}}" for cell, heading in zip(cells, HEADINGS, strict=True)
    )
