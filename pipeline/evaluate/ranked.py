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

    share = UserShare.of(splits, world, device)
    generator, seconds = _rank(config, loaded, share, drop_seen=drop_seen, listener=listener)
    (beside,) = targets
    dense = beside.dense()
    # A target's rank by counting alone is that of the baseline, which ranks the whole catalogue.
    counting = share.whole(beside.counting())
    assert counting.other is not None
    by_rule = counted[1].cooccurrence_by_rule
    counting = replace(
        counting, ranks_U=by_rule[drop_seen], other=replace(counting.other, ranks_U=by_rule[not drop_seen])
    )
    ranking = share.whole(beside.ranking())
    exact_U = None if beside.exact_U is None else share.gather(beside.exact_U)
    without_US = share.gather(beside.without_US)
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
        dense=None if dense is None else share.whole(dense),
        counting=counting,
        fused=fused,
        seconds=seconds - beside.all_seconds,
        dense_seconds=beside.dense_seconds,
    )


def _rank(
    config: EvaluateConfig,
    model: Generator,
    share: "UserShare",
    *,
    drop_seen: bool,
    listener: Listener,
) -> tuple[Ranking, float]:
    """Rank all test users by both rules, each in one of the processes; every process returns the whole ranking.

    The second value is the seconds that it took.

    Args:
        config: section evaluate.
        model: the generator.
        share: the test users of this process.
        drop_seen: which rule comes first.
        listener: makes of the ranker what is called with each batch that was found.
    """
    began = time.perf_counter()
    # 1. Rank this process's users.
    ranker = ranker_of(config, model, share.splits, "test", share.users_S, drop_seen=drop_seen)
    listen = listener(ranker)
    with Progress("evaluate", len(share.users_S), "users") if share.world.leads else nullcontext() as progress:
        ranking = ranker.rank(model.model, progress, model.eval_skips, listen)
    # 2. Gather the rows of all processes, in user order, and add up their counts.
    return share.whole(ranking), time.perf_counter() - began


@dataclass(frozen=True)
class UserShare:
    """A `UserShare` says which test users this process ranks, and brings what all processes found together.

    share_S: rows of this process among all test users.
    """

    splits: Splits
    world: World
    share_S: np.ndarray
    device: torch.device

    @classmethod
    def of(cls, splits: Splits, world: World, device: torch.device) -> "UserShare":
        """Share the test users by the lengths of their histories, which the cost of a search follows."""
        # 2 processes and histories of 9 2 3 8 items: one process takes users 0 and 1, the other one 2 and 3
        _, offsets = splits.history_index(splits.targets("test")[1])
        return cls(splits, world, world.share(np.diff(offsets)), device)

    @property
    def users_S(self) -> np.ndarray:
        """Return the users of this process."""
        users_S: np.ndarray = self.splits.targets("test")[0][self.share_S]
        return users_S

    def gather(self, values_S: np.ndarray) -> np.ndarray:
        """Return the rows of all processes, in user order."""
        return self.world.gather(values_S, self.share_S, len(self.splits.targets("test")[0]), self.device)

    def whole(self, found: Ranking) -> Ranking:
        """Return the rankings by both rules with the rows of all processes."""
        return replace(self._gathered(found), other=found.other and self._gathered(found.other))

    def _gathered(self, found: Ranking) -> Ranking:
        users_U, positions_U = self.splits.targets("test")
        counts = torch.tensor([found.invalid, found.generated], device=self.device)
        invalid, generated = self.world.sum(counts).tolist()
        return Ranking(
            users_U=users_U,
            positions_U=positions_U,
            lengths_U=self.gather(found.lengths_U),
            ranks_U=self.gather(found.ranks_U),
            bucket_ranks_U=self.gather(found.bucket_ranks_U),
            top_UK=self.gather(found.top_UK),
            mass_U=self.gather(found.mass_U),
            invalid=invalid,
            generated=generated,
        )
