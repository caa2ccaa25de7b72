"""Measure on the test exposures what the means of items and users alone predict of each label (docs/actions.md).

A network that predicts actions has to beat these figures.

Shape legend: X exposures.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.actions import label_keys
from pipeline.artifacts import SPLITS
from pipeline.evaluate.action_means import fit_means
from pipeline.exposure_metrics import by_length, measure
from pipeline.exposures import Exposures
from pipeline.printing import shown
from pipeline.results.predictions import FIGURES, MEANS

SHOWN = ("auc", "gauc", "wgauc", "log_loss", "calibration")
HEADINGS = ("AUC", "GAUC", "wGAUC", "log loss", "calibration", "positive", "users with both")


def means_on_test(exposures: Exposures, test_X: np.ndarray) -> pd.DataFrame:
    """Return the columns of `pipeline/results/predictions.py` for these test exposures, without those of a model.

    The regression is fitted to the training exposures; validation and test have no part in it.
    """
    train_X = exposures.part("train")
    users_X, items_X = exposures.users_X(), np.asarray(exposures.items_X, np.int64)
    users, items = len(exposures.offsets) - 1, int(items_X.max()) + 1
    columns: dict[str, np.ndarray] = {
        "user_id": users_X[test_X].astype(np.int32),
        "item_id": items_X[test_X].astype(np.int32),
        "earlier": exposures.earlier(test_X).astype(np.int32),
        "item_exposures": np.bincount(items_X[train_X], minlength=items)[items_X[test_X]].astype(np.int32),
    }
    labels = exposures.actions.labels
    for key, label in zip(label_keys(labels), labels, strict=True):
        answers_X = np.asarray(exposures.actions_XA[:, label.column]) >= label.least
        fitted = fit_means(users_X[train_X], items_X[train_X], answers_X[train_X], users, items)
        columns[f"answer_{key}"] = answers_X[test_X]
        columns[f"{MEANS}_{key}"] = fitted.chances(users_X[test_X], items_X[test_X]).astype(np.float32)
    return pd.DataFrame(columns)


def means_figures(folder: Path = SPLITS) -> tuple[dict[str, float], str]:
    """Return the regression's figures as `means_auc_KEY`, and a table of them.

    Both are empty where the splits have no exposures, or none for training or for test; the table then says the latter.
    """
    exposures = Exposures.read(folder)
    if exposures is None:
        return {}, ""
    test_X = exposures.part("test")
    if not (len(exposures.part("train")) and len(test_X)):
        return {}, "exposures: none for training or none for test, so that no chance of an action is measured"
    frame = means_on_test(exposures, test_X)
    labels = exposures.actions.labels
    named = {key: label.name for key, label in zip(label_keys(labels), labels, strict=True)}
    figures = {
        f"means_{name}_{key}": value
        for key in named
        for name, value in measure_label(frame, key, MEANS).items()
        if name in FIGURES
    }
    title = f"{len(frame):,} test exposures, predicted by a regression on item and user means"
    return figures, exposure_table(frame, named, {MEANS: ""}, title)


def measure_label(frame: pd.DataFrame, key: str, system: str) -> dict[str, float | int]:
    """Return all figures of one label by one system."""
    return measure(*_columns(frame, key, system))


def exposure_table(frame: pd.DataFrame, labels: Mapping[str, str], systems: Mapping[str, str], title: str) -> str:
    """Return the figures of each label as lines of text, by system, and by the number of earlier exposures.

    Args:
        labels: key of each label -> its name.
        systems: MODEL or MEANS -> the word that stands behind the label.
    """
    names = {
        (key, system): f"{shown(name)}, {word}" if word else shown(name)
        for key, name in labels.items()
        for system, word in systems.items()
    }
    width = max(24, *(len(name) + 2 for name in names.values()))
    lines = [
        f"{title}; -: one class only",
        " " * width + "".join(f"{heading:>{len(heading) + 4}}" for heading in HEADINGS),
    ]
    for (key, system), name in names.items():
        lines.append(_line(name, measure_label(frame, key, system), width))
        groups = by_length(*_columns(frame, key, system), frame["earlier"].to_numpy())
        if len(groups) > 1 and system == next(iter(systems)):
            lines += [_line(f"  {group} exposures before", figures, width) for group, figures in groups.items()]
    return "\n".join(lines)


def _columns(frame: pd.DataFrame, key: str, system: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chances_X = frame[f"{system}_{key}"].to_numpy().astype(np.float64)
    return frame["user_id"].to_numpy(), frame[f"answer_{key}"].to_numpy(), chances_X


def _line(name: str, figures: Mapping[str, float | int], width: int) -> str:
    cells = [f"{figures[figure]:.4f}" if figure in figures else "-" for figure in SHOWN]
    cells += [f"{figures['positives'] / figures['exposures']:.1%}", f"{figures['users_with_both']:,}"]
    return f"{name:<{width}}" + "".join(
        f"{cell:>{len(heading) + 4}}" for cell, heading in zip(cells, HEADINGS, strict=True)
    )
