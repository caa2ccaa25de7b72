"""Evaluate a model that predicts actions (`train.task: ranking`) on the test exposures, beside a regression on means.

It ranks no items: metrics.json has no recall, and the dense retriever, counting and their fusion have no part in it.

Shape legend: X exposures, U users.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.actions import label_keys
from pipeline.artifacts import Splits, write_json
from pipeline.decoding.actions import label_chances, predicted_actions
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.evaluate.breakdown import bin_name, bins_of, write_csv
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.exposures import exposure_table, means_on_test
from pipeline.evaluate.sample import PURPOSE
from pipeline.exposures import Exposures
from pipeline.generator import Generator
from pipeline.hashing import sample_rows
from pipeline.manifest import seal
from pipeline.printing import say
from pipeline.results.bootstrap import interval, resampled_means
from pipeline.results.predictions import MEANS, MODEL, Predictions

NO_FUSION = "fusion.json"  # in models/fusion, which DVC expects of every evaluation


def predict_exposures(
    config: EvaluateConfig, loaded: Generator, splits: Splits, folder: Path, world: World
) -> tuple[pd.DataFrame, dict[str, str], dict[str, float]] | None:
    """Predict the test exposures, every process its share.

    Returns:
        The columns of `pipeline/results/predictions.py`, the names of the labels by their keys, and counts and seconds;
        None in all processes but the first.

    Raises:
        UserError: there are no exposures, or none for test.
    """
    exposures = Exposures.read(folder)
    test_X = exposures.part("test") if exposures else np.zeros(0, np.int64)
    if exposures is None or not len(test_X):
        raise UserError(
            f"{folder} has no test exposures",
            "the model predicts actions, and is measured on what users did with items in the test period",
            "name columns of the log in ingest.actions, choose an earlier split.test_from, and run `dvc repro`",
        )
    # 1. The test users, or a sample of them.
    users_X = exposures.users_of(test_X)
    users_U = np.unique(users_X)
    drawn_U = users_U[sample_rows(users_U, config.users, PURPOSE)]
    test_X = test_X[np.isin(users_X, drawn_U)]
    counts = {"users": len(drawn_U), **({"users_in_all": len(users_U)} if len(drawn_U) < len(users_U) else {})}
    # 2. The chances of each label. Before a user's first exposure there is nothing to read: it gets the shares of the
    # training exposures.
    began = time.perf_counter()
    sequences = exposures.sequences(splits)
    first_X = exposures.earlier(test_X) == 0
    rows_X = np.flatnonzero(~first_X)
    share_X = rows_X[world.share(np.diff(sequences.history_index(test_X[rows_X])[1]))] if len(rows_X) else rows_X
    predicted = predicted_actions(loaded.model, sequences, test_X[share_X], config.batch_users)
    trained_XA = np.asarray(exposures.actions_XA)[exposures.part("train")]
    labels = exposures.actions.labels
    keys = label_keys(labels)
    chances = {}
    for key, label in zip(keys, labels, strict=True):
        told_X = label_chances(predicted[label.column], label.least)
        chances_X = world.gather(told_X, share_X, len(test_X), loaded.model.catalogue.codes_IL.device)
        chances_X[first_X] = (trained_XA[:, label.column] >= label.least).mean()
        chances[f"{MODEL}_{key}"] = chances_X.astype(np.float32)
    seconds = time.perf_counter() - began
    if not world.leads:
        return None
    frame = means_on_test(exposures, test_X).assign(**chances)
    facts = {
        **counts,
        "exposures": len(frame),
        "first_exposures": int(first_X.sum()),
        "evaluate_seconds": seconds,
        "exposures_per_second": len(frame) / seconds,
    }
    return frame, {key: label.name for key, label in zip(keys, labels, strict=True)}, facts


def action_figures(predictions: Predictions, *, samples: int, seed: int) -> dict[str, float]:
    """Return the figures of both systems by flat names, those of the regression as `means_auc`.

    `auc_low` and `auc_high` are the ends of the 95% interval by resampled users.
    """
    figures = predictions.figures(MODEL)
    values = predictions.values(MODEL)
    if values:
        ends = interval(resampled_means(np.stack([*values.values()], axis=1), samples, seed))
        for name, low, high in zip(values, *ends, strict=True):
            figures |= {f"{name}_low": round(float(low), 6), f"{name}_high": round(float(high), 6)}
    return figures | {f"means_{name}": value for name, value in predictions.figures(MEANS).items()}


def write_predictions(predictions: Predictions, ranks: Path, fusion: Path, point: Mapping[str, Any]) -> None:
    """Write ranks.parquet, the tables beside it, and a models/fusion without views.

    Args:
        point: the one row of frontier.csv.
    """
    predictions.write(ranks)
    frame = predictions.exposures
    for file, column in (("by_history.csv", "earlier"), ("by_popularity.csv", "item_exposures")):
        write_csv(ranks.with_name(file), _by_bins(predictions, frame[column].to_numpy()))
    write_csv(ranks.with_name("frontier.csv"), pd.DataFrame([point]))
    write_json(fusion / NO_FUSION, {"views": [], "why": "train.task is ranking, which ranks no items"})
    seal(fusion, "evaluate")


def _by_bins(predictions: Predictions, values_X: np.ndarray) -> pd.DataFrame:
    """Return one row per bin that has exposures: the means over labels of AUC and log loss, of both systems."""
    bins_X = bins_of(values_X)
    rows = []
    for number in (present := np.unique(bins_X)):
        row: dict[str, Any] = {"bin": bin_name(number, present), "exposures": int((bins_X == number).sum())}
        for prefix, system in (("", MODEL), ("means_", MEANS)):
            figures = predictions.figures(system, bins_X == number)
            row |= {f"{prefix}{name}": figures.get(name, float("nan")) for name in ("auc", "gauc", "log_loss")}
        rows.append(row)
    return pd.DataFrame(rows).astype({"exposures": int}).fillna("nan")


def say_actions(predictions: Predictions, figures: Mapping[str, float], strategy: str) -> None:
    """Print the table of both systems."""
    systems = {MODEL: strategy, MEANS: "means of item and user"}
    of_all = f" of {figures['users_in_all']:,}, a sample" if "users_in_all" in figures else ""
    title = f"{figures['exposures']:,} test exposures of {figures['users']:,} users{of_all}"
    say(exposure_table(predictions.exposures, predictions.labels, systems, title))
    if first := figures["first_exposures"]:
        say(f"{first:,} of them are the first of their user: their chances are the shares of the training exposures")
    if "auc_low" in figures:
        say(
            f"mean over labels: AUC {figures['auc']:.4f} ({figures['auc_low']:.4f} to {figures['auc_high']:.4f}, 95%), "
            f"by the means {figures['means_auc']:.4f}"
        )
    say("train.task is ranking: no item is ranked, so that there is no recall; dense, counting and fusion have no part")
