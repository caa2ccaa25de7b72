"""Drops windows by a hash of (seed, epoch, position of the target).

Shape legend: W windows.
"""

import numpy as np
from pipeline.strategies.thinning import ThinningConfig

from pipeline.hashing import hasher, unit
from pipeline.strategies.base import Sampler, TrainingPlan, Weigh


class ThinningSampler(Sampler):
    """Weighs a window 0 with probability `share`; the others make up for it in the sum over an epoch."""

    def __init__(self, config: ThinningConfig, plan: TrainingPlan) -> None:
        self.config, self.plan = config, plan

    def begin_epoch(self, epoch: int) -> Weigh:
        share, hashed = self.config.share, hasher(self.plan.seed, 7, epoch)

        def weigh(_: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
            draw_W = unit(hashed(ends_W.astype(np.uint64)))
            return np.where(draw_W < share, 0.0, 1.0 / (1.0 - share)).astype(np.float32)

        return weigh
