"""A small training plan for skipgr's decisions: users, targets and their scores."""

from typing import Any, Literal, get_args

import numpy as np
import torch

from pipeline.strategies.base import TrainingPlan
from pipeline.strategies.skipgr.config import SkipgrConfig
from pipeline.strategies.skipgr.rules import UNSCORED, Decisions, Rules

WIDTHS, LEVELS, ITEMS = (6, 5, 3), 3, 40
Rule = Literal["low_entropy", "high_entropy", "static_low_entropy", "random", "random_step", "static_random", "loss"]
RULES: tuple[Rule, ...] = get_args(Rule)


def plan(users: int = 30, seed: int = 3, **options: Any) -> TrainingPlan:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, users)
    first_U = np.cumsum(lengths) - lengths
    known = {
        "items_M": rng.integers(0, ITEMS, lengths.sum()).astype(np.int32),
        "first_U": first_U,
        "end_U": first_U + lengths - 2,
        "windows": int((lengths - 3).sum()),
        "samples_per_step": 16.0,
        "epochs": 12.0,
        "one_per_target": True,
        "all_targets": False,
        "each_target_once": False,
        "max_history": 6,
        "seed": seed,
        "device": torch.device("cpu"),
        "sum": lambda tensor: tensor,
    }
    return TrainingPlan(**known | options)


def scored(of: TrainingPlan) -> np.ndarray:
    """Every target of training: all but each user's first interaction."""
    return np.concatenate([np.arange(first + 1, end) for first, end in zip(of.first_U, of.end_U, strict=True)])


def random_scores(of: TrainingPlan, seed: int = 0, ties: bool = True) -> np.ndarray:
    """Scores of which many are equal, as those of a model that is sure of most targets."""
    rng, index_M = np.random.default_rng(seed), scored(of)
    scores_NL = np.full((len(of.items_M), LEVELS), UNSCORED, np.float32)
    drawn = rng.random((len(index_M), LEVELS)) * 1.5
    scores_NL[index_M] = np.round(drawn * 8) / 8 if ties else drawn
    return scores_NL


def decide(config: SkipgrConfig, epoch: int = 1, of: TrainingPlan | None = None, seed: int = 0) -> Decisions:
    of = of or plan()
    return Rules(config, of, LEVELS).decide(random_scores(of, seed), epoch)
