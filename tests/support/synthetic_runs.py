"""Evaluated runs with a known truth: each user has a chance of a hit, which the arm and the seed shift."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.results.arms import Arm
from pipeline.results.predictions import Predictions
from pipeline.results.ranks import Origin, Ranks, ranks_frame
from pipeline.results.runs import Run


def ranks_of(rank: np.ndarray, *, strategy: str = "full", seed: int = 0, **origin: Any) -> Ranks:
    users = np.arange(len(rank))
    frame = ranks_frame(
        user_id=users,
        item_id=users % 7,
        rank=rank,
        bucket_rank=rank,
        history_length=users % 5,
        target_popularity=users % 3,
        tie=users % 2 == 0,
        popularity_rank=users + 1,
        cooccurrence_rank=users + 1,
        directed_rank=users + 1,
        other_rank=rank,
    )
    made_from = {
        "model": f"{strategy}-{seed}",
        "splits": "s",
        "protocol": "leave one out, ties source",
        "dataset": "demo",
        "backbone": "t5",
        "base": "b",
        "recipe": strategy,
        "beam": 20,
        "decoding": "constrained",
        "filter_seen": False,
    }
    return Ranks(frame, Origin(**{**made_from, **origin}, strategy=strategy, seed=seed))


def simulated(
    rng: np.random.Generator,
    chances_U: np.ndarray,
    seeds: list[int],
    *,
    effect: float = 0.0,
    seed_spread: float = 0.0,
    name: str = "full",
) -> Arm:
    """One run per seed. effect, seed_spread: relative change of every user's chance, and its spread over seeds."""
    runs = []
    for seed in seeds:
        factor = 1 + effect + seed_spread * rng.standard_normal()
        hit_U = rng.random(len(chances_U)) < chances_U * factor
        rank = np.where(hit_U, rng.choice([1, 7], len(chances_U)), 0)
        runs.append(Run(f"{name}-{seed}", ranks_of(rank, strategy=name, seed=seed)))
    return Arm(name, tuple(runs))


def write_run(folder: Path, ranks: Ranks | Predictions) -> str:
    ranks.write(folder / "ranks.parquet")
    return str(folder)
