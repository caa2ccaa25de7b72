"""Predict what users do with given items, by a network with actions: the one path to the chances of actions.

Validation during training and the final evaluation both predict here.

Shape legend: W windows of a batch, X targets; local: A columns of actions, V values of a column.
"""

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.packing.backbone import Backbone, evaluating
from pipeline.packing.histories import Histories


@torch.no_grad()
def predicted_actions(model: Backbone, sequences: Splits, targets_X: np.ndarray, batch: int) -> list[np.ndarray]:
    """Return the log-probabilities of the values of each column for each target, A arrays float32 [X, V].

    The network sees the at most `max_history` items before the target, with their actions, and the target's item. Rows
    are in the order of `targets_X`.

    Args:
        sequences: items, times and actions; a target is a flat index that is not its user's first.
        batch: windows at once.
    """
    found = [np.empty((len(targets_X), size), np.float32) for size in model.action_sizes]
    lengths_X = np.diff(sequences.history_index(targets_X)[1])
    order_X = np.argsort(lengths_X, kind="stable")  # equal lengths form one dense group of a batch
    with evaluating(model):
        for rows_W in (order_X[i : i + batch] for i in range(0, len(order_X), batch)):
            for column, logp_WV in enumerate(_of_batch(model, sequences, targets_X[rows_W])):
                found[column][rows_W] = logp_WV
    return found


def _of_batch(model: Backbone, sequences: Splits, targets_W: np.ndarray) -> list[np.ndarray]:
    """Return the log-probabilities of some targets, A arrays [W, V]."""
    device = model.catalogue.codes_IL.device
    index_N, offsets = sequences.history_index(targets_W)
    histories = Histories.pack(
        np.asarray(sequences.items_N)[index_N],
        offsets,
        device,
        longest=sequences.max_history,
        times_N=sequences.seconds(index_N) if model.wants_times else None,
        actions_NA=sequences.actions_of(index_N),
    )
    items_W = np.asarray(sequences.items_N)[targets_W[histories.order]].astype(np.int64)
    logits = model(histories, torch.from_numpy(items_W).to(device), actions_only=True)
    return [histories.in_input_order(column.float().log_softmax(1)).cpu().numpy() for column in logits]


def label_chances(logp: np.ndarray, least: int) -> np.ndarray:
    """Return the chance that the value of a column is `least` or more, float64 [X].

    Args:
        logp: log-probabilities of the column's values, [X, V].
    """
    chances_X: np.ndarray = np.exp(logp[:, least:].astype(np.float64)).sum(1)
    return chances_X
