"""Fuse the views in the evaluation: weights from the validation targets, then the ranks of the test targets.

Both use the generator's search as it is, so that one search serves the generator's own ranking and the fused one.

Shape legend: U targets that are ranked, W windows of a batch; local: S views, R rows of weights (of all views, then
without each of them).
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import Splits
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import Search
from pipeline.decoding.ranking import FoundBatch, Outputs, Ranker, Ranking, Tally, seen_mass, target_ranks, without_seen
from pipeline.distributed import World
from pipeline.evaluate.config import EvaluateConfig
from pipeline.generator import Generator
from pipeline.progress import Progress
from pipeline.views.counting import evenly
from pipeline.views.fuser import Fuser, fused_outputs, history_rows
from pipeline.views.fusion import Candidates, Listed, target_ranks_of, union
from pipeline.views.lists import ENTRIES, MARGIN, SMOOTHING
from pipeline.views.weights import FusionWeights, Trial, ValidBatch, best, by_subset, fit, in_history


class ValidationLists:
    """`ValidationLists` collect the candidates of each batch of validation targets; call them with what was found.

    Args:
        ranker: of the validation targets.
        fusers: they differ in counting alone.

    Attributes:
        batches: for each of `fusers`.
    """

    def __init__(self, ranker: Ranker, fusers: Sequence[Fuser]):
        self.ranker = ranker
        self.fusers = fusers
        self.search = _dense_search(ranker, fusers[0], 0)
        self.batches: list[list[ValidBatch]] = [[] for _ in fusers]

    def __call__(self, found: FoundBatch) -> None:
        """Collect one batch."""
        first = self.fusers[0]
        beside = first.retrieve(found.items_N, found.offsets, search=self.search)
        lists = first.model_lists(found.outputs, beside)
        targets_W = torch.from_numpy(self.ranker.targets_U[found.rows].astype(np.int64)).to(first.device)
        seen_WM = history_rows(found.items_N, found.offsets, first.device)
        for fuser, batches in zip(self.fusers, self.batches, strict=True):
            counted = [] if fuser.counting is None else [fuser.counting.list(found.items_N, found.offsets)]
            batches.append(ValidBatch(union([*lists, *counted]), targets_W, seen_WM))


class FusedTargets:
    """`FusedTargets` ranks each batch of test targets by the fused views; call it with what was found.

    Args:
        slopes_RS: weights over temperatures: of all views, then without each of them.
        drop_seen: the rule for seen items of the exact form and of `without`.
        exact: whether the exact form is ranked, too; it takes as long as another search.

    Attributes:
        exact_U: ranks of the exact form, if it is ranked. without_US: ranks by the views without each of them.
        seconds, exact_seconds: of the floored form, beside the generator's search, and what the exact form adds to it.
        dense_seconds: of the dense retriever's search, which `seconds` has too, and of its own ranking.
    """

    def __init__(self, ranker: Ranker, fuser: Fuser, slopes_RS: Tensor, *, drop_seen: bool, exact: bool):
        self.ranker = ranker
        self.fuser = fuser
        self.slopes_RS = slopes_RS.to(fuser.device)
        self.drop_seen = drop_seen
        self.tallies, self.counting_tallies, self.dense_tallies = (ranker.tallies() for _ in range(3))
        self.search = _dense_search(ranker, fuser, ranker.width)
        targets = len(ranker.positions_U)
        self.exact_U = np.zeros(targets, np.int64) if exact else None
        self.without_US = np.zeros((targets, slopes_RS.shape[1]), np.int64)
        self.seconds = self.dense_seconds = self.exact_seconds = self.all_seconds = 0.0

    def __call__(self, found: FoundBatch) -> None:
        """Rank one batch."""
        began = self._now()
        fuser, beam = self.fuser, self.ranker.beam
        catalogue = self.ranker.catalogue
        targets = self.ranker.targets_U[found.rows]
        codes_IL = catalogue.codes_IL
        # 1. The floored form, by each rule for seen items.
        beside = fuser.retrieve(found.items_N, found.offsets, width=self.ranker.width, search=self.search)
        self.dense_seconds += self._now() - began
        lists = fuser.lists(found.outputs, beside, found.items_N, found.offsets)
        candidates = union(lists)
        seen_WM = history_rows(found.items_N, found.offsets, fuser.device)
        for tally in self.tallies:
            outputs = fused_outputs(
                candidates, self.slopes_RS[0], codes_IL, seen_WM if tally.drops_seen else None, beam
            )
            if tally.drops_seen == self.drop_seen:
                self.seconds += self._now() - began
            ranks = target_ranks(outputs, targets, codes_IL.cpu().numpy(), catalogue.bucket_levels)
            tally.add(found.rows, ranks, outputs, np.zeros(len(found.rows)))
        # 2. The dense retriever and counting alone.
        alone_began = self._now()
        if beside is not None and fuser.dense is not None:
            self._alone(found, beside, fuser.dense.catalogue, self.dense_tallies, share_out=True)
        self.dense_seconds += self._now() - alone_began
        self._count(found, lists[-1])
        # 3. Without each view.
        targets_W = torch.from_numpy(targets.astype(np.int64)).to(fuser.device)
        dropped_WJ = in_history(candidates.items_WJ, seen_WM) if self.drop_seen else None
        for view, slopes_S in enumerate(self.slopes_RS[1:]):
            self.without_US[found.rows, view] = self._ranks(candidates, slopes_S, targets_W, dropped_WJ)
        # 4. The exact form.
        if self.exact_U is not None:
            exact_began = self._now()
            exact = fuser.exact(candidates, self.slopes_RS[0], lists[0].floor_W, found, self.drop_seen)
            self.exact_U[found.rows] = self._ranks(exact, self.slopes_RS[0], targets_W, dropped_WJ)
            self.exact_seconds += self._now() - exact_began
        self.all_seconds += self._now() - began

    def _count(self, found: FoundBatch, view: Listed) -> None:
        """Add what counting alone shows; its list is the last one."""
        items_WE = view.items_WE.cpu().numpy()
        catalogue = self.ranker.catalogue
        codes_WEL = catalogue.codes_IL.cpu().numpy()[items_WE.clip(min=0)]
        self._alone(found, Outputs(items_WE, codes_WEL, view.scores_WE.cpu().numpy()), catalogue, self.counting_tallies)

    def _alone(
        self,
        found: FoundBatch,
        everything: Outputs,
        catalogue: Catalogue,
        tallies: Sequence[Tally],
        *,
        share_out: bool = False,
    ) -> None:
        """Add the ranks by one view alone.

        Args:
            everything: the view's items, those included that the rule for seen items drops.
            share_out: where seen items leave, the others share their probability.
        """
        codes_IL = catalogue.codes_IL.cpu().numpy()
        for tally in tallies:
            outputs, seen_W = everything.first(self.ranker.beam), np.zeros(len(found.rows))
            if tally.drops_seen:
                outputs = without_seen(everything, found.items_N, found.offsets, self.ranker.beam)
                seen_W = seen_mass(everything, found.items_N, found.offsets) if share_out else seen_W
            ranks = target_ranks(outputs, self.ranker.targets_U[found.rows], codes_IL, catalogue.bucket_levels)
            tally.add(found.rows, ranks, outputs, seen_W)

    def _ranks(
        self, candidates: Candidates, slopes_S: Tensor, targets_W: Tensor, dropped_WJ: Tensor | None
    ) -> np.ndarray:
        scores_WJ = candidates.scores(slopes_S)
        if dropped_WJ is not None:
            scores_WJ = scores_WJ.masked_fill(dropped_WJ, float("-inf"))
        ranks: np.ndarray = target_ranks_of(candidates.items_WJ, scores_WJ, targets_W).cpu().numpy()
        return np.where(ranks <= self.ranker.beam, ranks, 0)

    def _now(self) -> float:
        """Return the time in seconds, when the device has done what it was given."""
        if self.fuser.device.type == "cuda":
            torch.cuda.synchronize(self.fuser.device)
        return time.perf_counter()

    def ranking(self) -> Ranking:
        """Return the ranking of the floored form, by both rules."""
        return self.ranker.ranking(self.tallies)

    def counting(self) -> Ranking:
        """Return what counting alone shows, by both rules; a target beyond its list has no rank."""
        return self.ranker.ranking(self.counting_tallies)

    def dense(self) -> Ranking | None:
        """Return the dense retriever's ranking, by both rules; None where there is no retriever."""
        return None if self.fuser.dense is None else self.ranker.ranking(self.dense_tallies)


def ranker_of(
    config: EvaluateConfig, model: Generator, splits: Splits, part: str, users: np.ndarray, *, drop_seen: bool
) -> Ranker:
    """Return what ranks the targets of some users by both rules for seen items, `drop_seen` first."""
    return Ranker(
        model.catalogue,
        splits,
        part,
        beam=config.beam,
        decoding=config.decoding,
        filter_seen=drop_seen,
        both_rules=True,
        users=users,
        batch_users=config.batch_users,
    )


def weigh(
    config: EvaluateConfig,
    fusers: Sequence[Fuser],
    splits: Splits,
    world: World,
    models: dict[str, str],
    *,
    drop_seen: bool,
) -> tuple[FusionWeights | None, Fuser, Tensor]:
    """Choose the weights on the validation targets; the first process does it, and the others wait for the result.

    Args:
        config: section evaluate.
        fusers: they differ in counting alone; the one whose best weights do best is chosen, of equals the first.
        splits: with validation targets.
        world: the processes.
        models: content hash of each view's folder, by the names of views.
        drop_seen: the rule for seen items by which trials are judged.

    Returns:
        What goes to models/fusion, None in other processes; the chosen fuser; weights over temperatures, [R, S].
    """
    views, device = fusers[0].views, fusers[0].device
    slopes_RS = torch.zeros(1 + len(views), len(views), device=device)
    number = torch.zeros(1, dtype=torch.int64, device=device)
    fused = None
    if world.leads:
        fused, number[0], rows = _choose(config, fusers, splits, models, drop_seen)
        slopes_RS += torch.stack(rows).to(device)
    world.sum(slopes_RS)
    return fused, fusers[int(world.sum(number))], slopes_RS


def _choose(
    config: EvaluateConfig, fusers: Sequence[Fuser], splits: Splits, models: dict[str, str], drop_seen: bool
) -> tuple[FusionWeights, int, list[Tensor]]:
    """Return what goes to models/fusion, the number of the chosen fuser, and the rows of slopes."""
    generator, views = fusers[0].generator, fusers[0].views
    users, _ = splits.targets("valid")
    ranker = ranker_of(config, generator, splits, "valid", users[evenly(len(users))], drop_seen=drop_seen)
    validation = ValidationLists(ranker, fusers)
    with Progress("weigh views", len(ranker.users_U), "users") as progress:
        ranker.rank(generator.model, progress, generator.eval_skips, validation)
    fits = [fit(batches, views, drop_seen=drop_seen) for batches in validation.batches]
    number = max(range(len(fits)), key=lambda number: best(fits[number][1]).worth)
    temperatures, trials = fits[number]
    chosen, counting = best(trials), fusers[number].counting
    fused = FusionWeights(
        weights=dict(zip(views, chosen.weights, strict=True)),
        temperatures=temperatures,
        backward=1.0 if counting is None else counting.backward,
        subsets=by_subset(trials, views),
        entries={"generator": ranker.width} | dict.fromkeys(views[1:], ENTRIES),
        margin=MARGIN,
        smoothing=SMOOTHING,
        drop_seen=drop_seen,
        trials=sum(len(trials) for _, trials in fits),
        valid_users=len(ranker.users_U),
        valid_recall_at_10=chosen.recall_at_10,
        valid_ndcg_at_10=chosen.ndcg_at_10,
        models=models,
    )
    return fused, number, [fused.slopes(), *(fused.slopes(_best_without(trials, views, view)) for view in views)]


def _best_without(trials: Sequence[Trial], views: Sequence[str], view: str) -> dict[str, float]:
    """Return the best weights of those trials in which a view has none."""
    number = views.index(view)
    return dict(zip(views, best([trial for trial in trials if not trial.weights[number]]).weights, strict=True))


def _dense_search(ranker: Ranker, fuser: Fuser, width: int) -> Search | None:
    return None if fuser.dense is None else ranker.new_search(fuser.dense.model, fuser.retrieved(width))
