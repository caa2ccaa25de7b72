"""Measure loss and AUC on the validation exposures of all users or of a sample (`train.task: ranking`).

The sample of users is drawn as for a validation of ranked items. An exposure with no earlier one of its user has
nothing to be predicted from, and no part in it.

Shape legend: X exposures; local: A columns of actions.
"""

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.actions import Label
from pipeline.artifacts import Splits
from pipeline.catalogue import Catalogue
from pipeline.decoding.actions import label_chances, predicted_actions
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.exposure_metrics import auc
from pipeline.exposures import Exposures
from pipeline.hashing import sample_rows
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch
from pipeline.training.collate import Collator
from pipeline.training.steps import Step
from pipeline.training.validation import BATCH, PURPOSE
from pipeline.training.windows import Windows


class ActionValidation:
    """Measure models on the validation exposures.

    Args:
        sequences: the exposures in the form of interactions.
        users: size of the sample of users; 0, or more than have a validation exposure: all of these.
        collate: makes the batches of `batches`.
    """

    def __init__(
        self,
        exposures: Exposures,
        sequences: Splits,
        catalogue: Catalogue,
        world: World,
        collate: Collator,
        *,
        users: int = 0,
    ):
        self.exposures = exposures
        self.sequences = sequences
        self.catalogue = catalogue
        self.world = world
        self.collate = collate
        self.device = catalogue.codes_IL.device
        targets_X = exposures.with_history("valid")
        user_X = exposures.users_of(targets_X)
        users_U = np.unique(user_X)
        self.users_in_all = len(users_U)
        self.users_U = users_U[sample_rows(users_U, users, PURPOSE)]
        self.targets_X = targets_X[np.isin(user_X, self.users_U)]
        lengths_X = np.diff(sequences.history_index(self.targets_X)[1])
        self.windows = len(self.targets_X)
        self.items = int(lengths_X.sum())  # of all histories
        self._windows = Windows(self.targets_X - lengths_X, self.targets_X)
        self._share_X = world.share(lengths_X)  # the exposures that this process predicts

    @property
    def sampled(self) -> bool:
        """Return whether some users with a validation exposure are left out."""
        return len(self.users_U) < self.users_in_all

    def batches(self) -> Iterator[Batch]:
        """Make this process's share of the batches, one after another."""
        step = Step(0, 0, self._windows, np.ones(self.windows, np.float32))
        size = BATCH[self.device.type]
        for rows in (self._share_X[i : i + size] for i in range(0, len(self._share_X), size)):
            yield self.collate(step, rows)

    @torch.no_grad()
    def measure(self, model: Backbone) -> dict[str, float]:
        """Return `valid_loss` per exposure, summed over columns, and `auc`, the mean of the AUCs of all labels.

        A label that all exposures have, or none, has no AUC; `auc` is absent where no label has one.
        """
        targets_X = self.targets_X[self._share_X]
        predicted = predicted_actions(model, self.sequences, targets_X, BATCH[self.device.type])
        actions_XA = np.asarray(self.exposures.actions_XA)[targets_X].astype(np.int64)
        loss = -sum(
            float(np.take_along_axis(logp, actions_XA[:, column, None], 1).sum(dtype=np.float64))
            for column, logp in enumerate(predicted)
        )
        total = self.world.sum(torch.tensor(loss, dtype=torch.float64, device=self.device))
        scores = {"valid_loss": float(total) / self.windows}
        found = [auc(answers_X, chances_X) for answers_X, chances_X in self._labels(predicted)]
        known = [value for value in found if value is not None]
        return {**scores, "auc": float(np.mean(known))} if known else scores

    def _labels(self, predicted: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Give the answers to each label and their chances, of all processes."""
        for label, answers_X in self._answers():
            chances_X = label_chances(predicted[label.column], label.least)
            yield answers_X, self.world.gather(chances_X, self._share_X, self.windows, self.device)

    def _answers(self) -> Iterator[tuple[Label, np.ndarray]]:
        actions_XA = np.asarray(self.exposures.actions_XA)[self.targets_X]
        for label in self.exposures.actions.labels:
            yield label, actions_XA[:, label.column] >= label.least

    def check(self, select: str) -> None:
        """Raise UserError where there is nothing to measure by `select`."""
        if not self.windows:
            raise UserError(
                "no validation exposure has an earlier exposure of its user",
                "validation chooses the best weights",
                "split the log so that users have exposures before the validation period and within it",
            )
        if select == "auc" and all(answers_X.all() or not answers_X.any() for _, answers_X in self._answers()):
            raise UserError(
                "every label of ingest.actions has one answer alone on the validation exposures",
                "an AUC needs both answers, and train.select is auc",
                "set train.select=loss, or other edges in ingest.actions",
            )
