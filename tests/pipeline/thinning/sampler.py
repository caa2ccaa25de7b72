"""Drops windows by a hash of (seed, pass, position of the target).

Shape legend: W windows.
"""

import numpy as np
from pipeline.strategies.thinning import ThinningConfig

from pipeline.hashing import hasher, unit
from pipeline.strategies.base import Course, Sampler, Weigh


class ThinningSampler(Sampler):
    """Weighs a window 0 with probability `share`, and else so that a pass adds up to the same."""

    def __init__(self, config: ThinningConfig, course: Course) -> None:
        self.config, self.course = config, course

    def begin_pass(self, pass_index: int) -> Weigh:
        share, hashed = self.config.share, hasher(self.course.seed, 7, pass_index)

        def weigh(starts_W: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
            draw_W = unit(hashed(ends_W.astype(np.uint64)))
            return np.where(draw_W < share, 0.0, 1.0 / (1.0 - share)).astype(np.float32)

        return weigh
