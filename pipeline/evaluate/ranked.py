"""Rank the test targets by every system that the evaluation shows: generator, dense retriever, counting, fused views.

Every process takes its share of the users; all of them return the whole rankings.

Shape legend: U test users; local: S views.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.decoding.ranking import FoundBatch, Ranker, Ranking
from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.fused import FusedTargets, ranker_of, weigh
from pipeline.generator import Generator
from pipeline.progress import Progress
from pipeline.views.counting import Baselines, Counting
from pipeline.views.fuser import Fuser
from pipeline.views.weights import FusionWeights

Listener = Callable[[Ranker], Callable[[FoundBatch], None]]


@dataclass(frozen=True, kw_only=True)
class FusedRanking:
    """A `FusedRanking` holds the fused ranks, and what belongs to it.

    ranking: of the floored form, by both rules. exact_U: ranks of the exact form, which is ranked where
    `evaluate.ranking` is fused. without_US: ranks by the views without each of them. generator_U, counting_U:
    ranks by these views alone. All but `ranking.other` follow the headline's rule for seen items. seconds: of
    lists, union and ranking, beside the generator's search; exact_seconds: what the exact form adds.
    """

    weights: FusionWeights
    ranking: Ranking
    exact_U: np.ndarray | None
    without_US: np.ndarray
    generator_U: np.ndarray
    counting_U: np.ndarray
    seconds: float
    exact_seconds: float


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """`Ranked` holds the rankings of all systems over the test users. fused: None in processes that do not lead.

    generator, dense, counting: by both rules for seen items. seconds, dense_seconds: of the generator's ranking and of
    the dense retriever's, which searches once for both its ranking and its list.
    """

    generator: Ranking
    dense: Ranking | None
    counting: Ranking
    fused: FusedRanking | None
    seconds: float
    dense_seconds: float

    def headline(self, ranking: str) -> Ranking:
        """Return the ranking that `evaluate.ranking` names."""
        if ranking == "dense" and self.dense is not None:
            return self.dense
        if ranking == "fused" and self.fused is not None:
            return self.fused.ranking
        return self.counting if ranking == "counting" else self.generator


def rank_all(
    config: EvaluateConfig,
    loaded: Generator,
    retriever: Generator | None,
    counted: tuple[Counting, Baselines],
    splits: Splits,
    world: World,
    models: dict[str, str],
    *,
    drop_seen: bool,
) -> Ranked:
    """Weigh the views on validation, then rank all test users by every system, by both rules for seen items.

    Args:
        config: section evaluate.
        loaded: the generator.
        retriever: the dense retriever; None: there is none.
        counted: the counts, and the ranks of the counting baselines.
        splits: with targets of validation and test.
        world: the processes.
        models: content hash of each view's folder.
        drop_seen: the rule for seen items that the headline follows.

    Raises:
        UserError: no user has a test item.
    """
    if not len(splits.targets("test")[0]):
        raise UserError(
            "no user has a test item",
            "there is nothing to evaluate on",
            "choose an earlier split.test_from, or bring a log with longer histories",
        )
    device = loaded.catalogue.codes_IL.device
    # Counting as a view may go by direction: validation decides.
    directions = dict.fromkeys((1.0, counted[1].backward))
    fusers = [Fuser.of(loaded, retriever, counted[0], backward) for backward in directions]
    weights, fuser, slopes_RS = weigh(config, fusers, splits, world, models, drop_seen=drop_seen)
    targets: list[FusedTargets] = []

    def listener(ranker: Ranker) -> Callable[[FoundBatch], None]:
        targets.append(FusedTargets(ranker, fuser, slopes_RS, drop_seen=drop_seen, exact=config.ranking == "fused"))
        return targets[0]

    generator, seconds = _rank(config, loaded, splits, world, drop_seen=drop_seen, listener=listener)
    (beside,) = targets
    dense = beside.dense()
    # A target's rank by counting alone is that of the baseline, which ranks the whole catalogue.
    counting = _whole(beside.counting(), splits, device, world)
    assert counting.other is not None
    by_rule = counted[1].cooccurrence_by_rule
    counting = replace(
        counting, ranks_U=by_rule[drop_seen], other=replace(counting.other, ranks_U=by_rule[not drop_seen])
    )
    ranking = _whole(beside.ranking(), splits, device, world)
    exact_U = None if beside.exact_U is None else world.gather(beside.exact_U, len(generator.users_U), device)
    without_US = world.gather(beside.without_US, len(generator.users_U), device)
    fused = None
    if weights is not None:
        fused = FusedRanking(
            weights=weights,
            ranking=ranking,
            exact_U=exact_U,
            without_US=without_US,
            generator_U=generator.ranks_U,
            counting_U=counting.ranks_U,
            seconds=beside.seconds,
            exact_seconds=beside.exact_seconds,
        )
    return Ranked(
        generator=generator,
        dense=None if dense is None else _whole(dense, splits, device, world),
        counting=counting,
        fused=fused,
        seconds=seconds - beside.all_seconds,
        dense_seconds=beside.dense_seconds,
    )


def _rank(
    config: EvaluateConfig,
    model: Generator,
    splits: Splits,
    world: World,
    *,
    drop_seen: bool,
    listener: Listener,
) -> tuple[Ranking, float]:
    """Rank all test users by both rules, each in one of the processes; every process returns the whole ranking.

    The second value is the seconds that it took.

    Args:
        config: section evaluate.
        model: the generator.
        splits: with the test targets.
        world: the processes.
        drop_seen: which rule comes first.
        listener: makes of the ranker what is called with each batch that was found.
    """
    began = time.perf_counter()
    # 1. Rank this process's users. 2 processes and users 3 5 8 9: rank 0 takes 3 8, rank 1 takes 5 9.
    users_of_process_U = splits.targets("test")[0][world.share]
    ranker = ranker_of(config, model, splits, "test", users_of_process_U, drop_seen=drop_seen)
    listen = listener(ranker)
    with Progress("evaluate", len(users_of_process_U), "users") if world.leads else nullcontext() as progress:
        ranking = ranker.rank(model.model, progress, model.eval_skips, listen)
    # 2. Gather the rows of all processes, in user order, and add up their counts.
    return _whole(ranking, splits, model.catalogue.codes_IL.device, world), time.perf_counter() - began


def _whole(share: Ranking, splits: Splits, device: torch.device, world: World) -> Ranking:
    """Return the rankings by both rules with the rows of all processes."""
    other = share.other and _gathered(share.other, splits, device, world)
    return replace(_gathered(share, splits, device, world), other=other)


def _gathered(share: Ranking, splits: Splits, device: torch.device, world: World) -> Ranking:
    """Return the rows of all processes."""
    users_U, positions_U = splits.targets("test")

    def rows(values_U: np.ndarray) -> np.ndarray:
        return world.gather(values_U, len(users_U), device)

    invalid, generated = world.sum(torch.tensor([share.invalid, share.generated], device=device)).tolist()
    return Ranking(
        users_U=users_U,
        positions_U=positions_U,
        lengths_U=rows(share.lengths_U),
        ranks_U=rows(share.ranks_U),
        bucket_ranks_U=rows(share.bucket_ranks_U),
        top_UK=rows(share.top_UK),
        mass_U=rows(share.mass_U),
        invalid=invalid,
        generated=generated,
    )
