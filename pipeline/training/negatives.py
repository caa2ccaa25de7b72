"""Draw the items that stand for a large catalogue in a softmax: shared negatives, with the correction of their logits.

The sum over the catalogue in a softmax is estimated from M draws of a distribution q (Bengio and Senecal, "Adaptive
importance sampling to accelerate training of a neural probabilistic language model", 2008). Where a target t has the
logit s_t, and the draws are j_1 .. j_M,

    sum over i of exp(s_i)  is about  exp(s_t) + sum over m, j_m not t, of exp(s_j - log(M q_j)),

and the right side has the left one as its mean. q is a mixture: half of the draws are uniform, half follow the counts
of the training targets, since frequent items have most of the softmax's weight. All targets of a batch share the draws.
The numbers are hashes, so that a resumed run draws what it would have drawn.

Shape legend: M draws, I items of the catalogue; local: R targets of a batch.
"""

from dataclasses import replace

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.hashing import hasher, unit
from pipeline.packing.batch import Batch, SampledItems


def counts_in_training(splits: Splits) -> np.ndarray:
    """Return how many training interactions have each item, int64 [I]."""
    # Flat positions below their user's `train_end`: offsets 0 3 5, train_end 2 5 -> 1 1 0 1 1
    ends = np.repeat(np.asarray(splits.train_end), np.diff(splits.offsets))
    inside = np.arange(len(ends)) < ends
    return np.bincount(np.asarray(splits.items_N)[inside], minlength=int(splits.summary["items"]))


class Negatives:
    """Draw the negatives of each batch; equal (seed, epoch, position, part) give equal draws.

    Args:
        counts_I: interactions of each item in the training part.
        draws: M.
    """

    def __init__(self, counts_I: np.ndarray, draws: int, seed: int):
        self.draws = draws
        self.seed = seed
        self.ends_I = np.cumsum(counts_I)
        # Half of the draws are by count, the others uniform. Counts 3 1 0, M 8: expected 3 + 4/3, 1 + 4/3, 0 + 4/3
        half = draws // 2
        expected_I = half * counts_I / counts_I.sum() + (draws - half) / len(counts_I)
        self.log_expected_I = np.log(expected_I).astype(np.float32)

    def sampled(self, batch: Batch, epoch: int, position: int, part: int) -> Batch:
        """Return a batch of items (one level) whose softmax goes over the target and the draws.

        Args:
            position: where in the epoch the batch's step ends.
            part: the part of the step that the batch is.
        """
        numbers_M = unit(hasher(self.seed, epoch, position, part)(np.arange(self.draws, dtype=np.uint64)))
        half = self.draws // 2
        # 0.8 of the counts 3 1 0 is the interaction 3 of 0 .. 3, and that is item 1; 0.8 of three items is item 2.
        by_count = np.searchsorted(self.ends_I, numbers_M[:half] * self.ends_I[-1], side="right")
        uniform = (numbers_M[half:] * len(self.ends_I)).astype(np.int64)
        items_M = np.concatenate([by_count, uniform])
        device = batch.codes_WL.device
        drawn = SampledItems(
            targets_R=batch.codes_WL[:, 0],
            items_M=torch.from_numpy(items_M).to(device),
            log_expected_M=torch.from_numpy(self.log_expected_I[items_M]).to(device),
        )
        return replace(batch, codes_WL=torch.zeros_like(batch.codes_WL), sampled=drawn)
