"""This module finds the rank of each held-out item among the items that a model generates: the one path to ranks.

Validation during training, the final evaluation and the tests all rank here, so that they cannot disagree about what
a history is, what counts as found, or how seen items leave the ranking.

Shape legend: I items of the catalogue, W windows (users) of one batch, K beam width, L levels, N items of all
histories; local: U users that are ranked, J items of the longest history of a batch, S tokens of one item.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Required, TypedDict, Unpack

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.decoding.beam_search import Search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.metric_names import LARGEST_K
from pipeline.ops.layout import uses_kernels
from pipeline.packing.backbone import Backbone, evaluating
from pipeline.packing.histories import Histories, slices
from pipeline.packing.kept import EvalSkips, KeptItems
from pipeline.packing.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pipeline.catalogue import Catalogue
    from pipeline.progress import Progress

DecodingMethod = Literal["constrained", "unconstrained", "exact"]
INVALID = -1  # in a slot of the beam: a generated SID that names no item
LOGITS = 2**26  # of one level, held at once: over a catalogue of a million items that is 67 windows
EMPTY = -2  # in a slot of the beam: nothing, as the catalogue is smaller than the beam or seen items were dropped


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The ranks of all targets: one row per target, in user order.

    A target without any history cannot be ranked: it counts as a miss (rank 0) and stays in every denominator.
    """

    users_U: np.ndarray
    positions_U: np.ndarray  # flat index of the target in the splits
    lengths_U: np.ndarray  # items of the history, before any is skipped
    ranks_U: np.ndarray  # int64: 1-based rank of the item, 0 if not found; items of one Semantic ID rank by item id
    bucket_ranks_U: np.ndarray  # int64: the rank of the first output with the target's codes, whatever its digit
    top_UK: np.ndarray  # int64 [U, LARGEST_K]: the first items of the ranking; below 0 where there is none
    mass_U: np.ndarray  # float64: the probability that the model gives to these items together
    invalid: int  # generated Semantic IDs that name no item
    generated: int  # all generated Semantic IDs
    other: "Ranking | None" = None  # the ranks by the other rule for seen items, from the same search

    @property
    def invalid_share(self) -> float:
        """Return the share of generated Semantic IDs that name no item."""
        return self.invalid / max(self.generated, 1)


@dataclass(frozen=True)
class Outputs:
    """`Outputs` hold the items that a model generated for a batch of histories, best first."""

    items_WK: np.ndarray  # INVALID or EMPTY where there is no item
    codes_WKL: np.ndarray
    scores_WK: np.ndarray  # log-probabilities

    def first(self, beam: int) -> "Outputs":
        """Return the first `beam` outputs of each row."""
        return Outputs(self.items_WK[:, :beam], self.codes_WKL[:, :beam], self.scores_WK[:, :beam])


def windows_at_once(catalogue: "Catalogue", windows: int) -> int:
    """Return `windows`, or as many of them as have LOGITS logits of the widest level."""
    return max(1, min(windows, LOGITS // max(catalogue.widths)))


def histories_of(splits: Splits, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the history of each flat position: at most `max_history` items before it in the user's sequence.

    Returns:
        (items int32 flat, oldest first; offsets int64 [W + 1]): history w is items[offsets[w]:offsets[w + 1]].
    """
    index, offsets = splits.history_index(positions)
    return np.asarray(splits.items_N)[index], offsets


class Ranker:
    """Rank the held-out item of every user of `part` (`valid` or `test`), for one model after another.

    Args:
        beam: length of the ranking; a target with a worse rank is not found.
        decoding: beam search constrained to the catalogue, unconstrained, or `exact`: every item is scored.
        filter_seen: items of the history leave the ranking. The search is widened by `max_history`, so that `beam`
            items remain. A target that is in the user's history can then not be found.
        both_rules: rank by the other rule too, `Ranking.other`. One search that is wider by `max_history` serves both,
            whichever is `filter_seen`, so that each rule's ranks are the same.
        users: rank only these (a process's share); users without a target in `part` are left out.
    """

    def __init__(  # noqa: PLR0913 - all but three by keyword
        self,
        catalogue: "Catalogue",
        splits: Splits,
        part: str,
        *,
        beam: int,
        decoding: DecodingMethod = "constrained",
        filter_seen: bool = False,
        both_rules: bool = False,
        batch_users: int = 256,
        users: np.ndarray | None = None,
    ):
        self.catalogue = catalogue
        self.beam = beam
        self.decoding = decoding
        self.longest = splits.max_history
        self.rules = (filter_seen, not filter_seen) if both_rules else (filter_seen,)
        self.width = beam + (splits.max_history if True in self.rules else 0)
        self.users_U, self.positions_U = splits.targets(part)
        if users is not None:
            chosen = np.isin(self.users_U, users)
            self.users_U = self.users_U[chosen]
            self.positions_U = self.positions_U[chosen]
        self.index_N, self.offsets = splits.history_index(self.positions_U)
        self.items_N = np.asarray(splits.items_N)[self.index_N]
        self.times_N = splits.seconds(self.index_N)
        self.actions_NA = splits.actions_of(self.index_N) if catalogue.action_sizes else None
        self.lengths_U = np.diff(self.offsets)
        self.targets_U = np.asarray(splits.items_N)[self.positions_U]
        # On a CPU, users are sorted by length, because equal lengths form one dense group of a batch. Kernels take any
        # lengths, and a recorded search wants batches of one shape, so that users stay in order. Empty histories have
        # no row.
        self.records = uses_kernels(catalogue.codes_IL.device)
        rows = np.arange(len(self.lengths_U)) if self.records else np.argsort(self.lengths_U, kind="stable")
        rows = rows[self.lengths_U[rows] > 0]
        size = windows_at_once(catalogue, batch_users)
        self.batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        self._search: Search | None = None

    def rank(
        self,
        model: Backbone,
        progress: "Progress | None" = None,
        eval_skips: EvalSkips | None = None,
        listen: "Callable[[FoundBatch], None] | None" = None,
    ) -> Ranking:
        """Rank the targets with a model. The model is in evaluation mode meanwhile, and afterwards in its earlier mode.

        Args:
            eval_skips: the tokens of the histories that the model does not see; `filter_seen` drops the skipped items
                too.
            listen: called with what was found for each batch, for rankings that build on it.
        """
        tallies = self.tallies()
        codes_IL = self.catalogue.codes_IL.cpu().numpy()
        with evaluating(model):
            for rows in self.batches:
                index, offsets = slices(self.offsets[rows], self.lengths_U[rows])
                found = self._generate(model, index, offsets, eval_skips)
                for tally in tallies:
                    outputs = found.first(self.beam)
                    seen_W = np.zeros(len(rows))
                    if tally.drops_seen:
                        outputs = without_seen(found, self.items_N[index], offsets, self.beam)
                        seen_W = seen_mass(found, self.items_N[index], offsets)
                    ranks = target_ranks(outputs, self.targets_U[rows], codes_IL, self.catalogue.bucket_levels)
                    tally.add(rows, ranks, outputs, seen_W)
                if listen is not None:
                    times = self.times_N[index] if model.wants_times else None
                    kept = None if eval_skips is None else eval_skips.kept(self.index_N[index], offsets)
                    listen(
                        FoundBatch(
                            rows=rows,
                            items_N=self.items_N[index],
                            offsets=offsets,
                            times_N=times,
                            actions_NA=None if self.actions_NA is None else self.actions_NA[index],
                            kept=kept,
                            outputs=found,
                        )
                    )
                if progress is not None:
                    progress.update(len(rows))
        return self.ranking(tallies)

    def tallies(self) -> "list[Tally]":
        """Return an empty tally for each rule for seen items."""
        return [Tally(rule, len(self.positions_U)) for rule in self.rules]

    def ranking(self, tallies: "Sequence[Tally]") -> Ranking:
        """Return what filled tallies hold."""
        other = self._ranking(tallies[1], None) if len(tallies) > 1 else None
        return self._ranking(tallies[0], other)

    def _ranking(self, tally: "Tally", other: Ranking | None) -> Ranking:
        return Ranking(
            users_U=self.users_U,
            positions_U=self.positions_U,
            lengths_U=self.lengths_U,
            ranks_U=tally.ranks_U,
            bucket_ranks_U=tally.bucket_ranks_U,
            top_UK=tally.top_UK,
            mass_U=tally.mass_U,
            invalid=tally.invalid,
            generated=tally.generated,
            other=other,
        )

    def _generate(
        self, model: Backbone, index: np.ndarray, offsets: np.ndarray, eval_skips: EvalSkips | None
    ) -> Outputs:
        return generate_items(
            model,
            self.items_N[index],
            offsets,
            beam=self.width,
            decoding=self.decoding,
            # A batch's shapes depend on the items that are skipped, so that no recording would serve two batches.
            search=self._recorded(model) if eval_skips is None else None,
            times=self.times_N[index] if model.wants_times else None,
            actions=None if self.actions_NA is None else self.actions_NA[index],
            kept=None if eval_skips is None else eval_skips.kept(self.index_N[index], offsets),
        )

    def _recorded(self, model: Backbone) -> Search | None:
        """Return the one search that serves all batches of a model, where kernels run; else None."""
        if self._search is None or self._search.model is not model:
            self._search = self.new_search(model, self.width, constrained=self.decoding == "constrained")
        return self._search

    def new_search(self, model: Backbone, width: int, *, constrained: bool = True) -> Search | None:
        """Return a search that is recorded once for all batches, where kernels run; else None."""
        if not self.records:
            return None
        shape = Shape.of([self.lengths_U[rows] for rows in self.batches], self.longest)
        return Search(model, width, constrained=constrained, shape=shape, longest=self.longest)


@dataclass(frozen=True, kw_only=True)
class FoundBatch:
    """A `FoundBatch` holds what a model's search found for one batch of targets.

    rows: their rows in the ranking. items_N, offsets: the whole histories, end to end; the next three: what
    `generate_items` takes. outputs: as wide as the search.
    """

    rows: np.ndarray
    items_N: np.ndarray
    offsets: np.ndarray
    times_N: np.ndarray | None
    actions_NA: np.ndarray | None
    kept: KeptItems | None
    outputs: Outputs


class Tally:
    """A `Tally` collects the ranks of all batches by one rule for seen items."""

    def __init__(self, drops_seen: bool, users: int):
        self.drops_seen = drops_seen
        self.ranks_U = np.zeros(users, np.int64)
        self.bucket_ranks_U = np.zeros(users, np.int64)
        self.top_UK = np.full((users, LARGEST_K), EMPTY, np.int64)
        self.mass_U = np.zeros(users)
        self.invalid = 0
        self.generated = 0

    def add(self, rows: np.ndarray, ranks: tuple[np.ndarray, np.ndarray], outputs: Outputs, seen_W: np.ndarray) -> None:
        """Add the outputs of some rows; `seen_W` is the probability of what their users have seen."""
        self.ranks_U[rows], self.bucket_ranks_U[rows] = ranks
        self.invalid += int((outputs.items_WK == INVALID).sum())
        self.generated += int((outputs.items_WK != EMPTY).sum())
        first = outputs.first(LARGEST_K)
        self.top_UK[rows, : first.items_WK.shape[1]] = first.items_WK
        # Where seen items are dropped, the others share all probability.
        mass_W = np.where(first.items_WK >= 0, np.exp(first.scores_WK.astype(np.float64)), 0).sum(1)
        self.mass_U[rows] = mass_W / np.maximum(1 - seen_W, mass_W.clip(min=1e-12))


class RankerOptions(TypedDict, total=False):
    """The keyword arguments of `Ranker`."""

    beam: Required[int]
    decoding: DecodingMethod
    filter_seen: bool
    both_rules: bool
    batch_users: int
    users: np.ndarray | None


def rank_targets(
    model: Backbone,
    catalogue: "Catalogue",
    splits: Splits,
    part: str,
    *,
    progress: "Progress | None" = None,
    eval_skips: EvalSkips | None = None,
    **options: Unpack[RankerOptions],
) -> Ranking:
    """Rank the targets with one model; `options` are arguments of `Ranker`."""
    return Ranker(catalogue, splits, part, **options).rank(model, progress, eval_skips)


@torch.no_grad()
def generate_items(  # noqa: PLR0913 - all but three by keyword
    model: Backbone,
    items: np.ndarray,
    offsets: np.ndarray,
    *,
    beam: int,
    decoding: DecodingMethod = "constrained",
    drop_seen: int = 0,
    search: Search | None = None,
    times: np.ndarray | None = None,
    actions: np.ndarray | None = None,
    kept: KeptItems | None = None,
) -> Outputs:
    """Return the `beam` items that the model expects next after each history, best first.

    Args:
        items: the items of all histories, end to end.
        offsets: history w is items[offsets[w]:offsets[w + 1]], one item at least.
        drop_seen: drop the items of the history, from a beam wider by this many slots. 0: the history stays in.
        search: the search to use, for this model, width (`beam` + `drop_seen`) and `decoding`, where more batches will
            follow; None: a new one.
        times: seconds, the time of each item; for a model that wants times.
        actions: the action of each item, a row each; for a model that reads actions; None: all are 0.
        kept: the part of the histories that the model sees; None: all.
    """
    width = beam + drop_seen
    codes_IL = model.catalogue.codes_IL
    kept_NS = kept.tokens_NS if kept else None
    seen_N, starts, times_N = kept.items(items, offsets, times) if kept else (items, offsets, times)
    actions_NA = kept.rows(actions) if kept else actions
    if decoding == "exact":
        histories = Histories.pack(
            seen_N, starts, codes_IL.device, times_N=times_N, actions_NA=actions_NA, kept_NS=kept_NS
        )
        scores_WI = score_catalogue(model, histories)
        order_WK = torch.argsort(scores_WI, dim=1, descending=True, stable=True)[:, :width]
        outputs = Outputs(
            order_WK.cpu().numpy(), codes_IL[order_WK].cpu().numpy(), scores_WI.gather(1, order_WK).cpu().numpy()
        )
    else:
        search = search or Search(model, width, constrained=decoding == "constrained")
        beams = search(seen_N, starts, times_N, kept_NS, actions_NA)
        scores_WK = beams.scores_WK.float().cpu().numpy()
        items_WK = np.where(np.isneginf(scores_WK), EMPTY, beams.items_WK.cpu().numpy())
        outputs = Outputs(items_WK, beams.codes_WKL.cpu().numpy(), scores_WK)
    return without_seen(outputs, items, offsets, beam) if drop_seen else outputs


def without_seen(outputs: Outputs, items: np.ndarray, offsets: np.ndarray, beam: int) -> Outputs:
    """Return the first `beam` outputs that are not in the row's history; slots that nothing fills are EMPTY."""
    seen_WK = is_seen(outputs, items, offsets)
    # A stable sort moves seen items behind the others: seen 0 1 0 0, beam 2 -> columns 0 2
    column_WK = np.argsort(seen_WK, axis=1, kind="stable")[:, :beam]
    seen_WK, items_WK, scores_WK = (
        np.take_along_axis(array, column_WK, 1) for array in (seen_WK, outputs.items_WK, outputs.scores_WK)
    )
    codes_WKL = np.take_along_axis(outputs.codes_WKL, column_WK[..., None], 1)
    return Outputs(np.where(seen_WK, EMPTY, items_WK), codes_WKL, scores_WK)


def is_seen(outputs: Outputs, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return which outputs are in the row's history, bool [W, K]."""
    # Histories as rows: lengths 2, 1 of items 7 9 | 4 -> [[7, 9], [4, EMPTY]]
    lengths_W = np.diff(offsets)
    history_WJ = np.full((len(lengths_W), lengths_W.max()), EMPTY, np.int64)
    history_WJ[np.arange(history_WJ.shape[1]) < lengths_W[:, None]] = items
    seen_WK: np.ndarray = (outputs.items_WK[:, :, None] == history_WJ[:, None, :]).any(-1)
    return seen_WK


def seen_mass(outputs: Outputs, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the probability of those outputs of each row that are items of its history, float64 [W]."""
    seen_WK = is_seen(outputs, items, offsets) & (outputs.items_WK >= 0)
    mass_W: np.ndarray = np.where(seen_WK, np.exp(outputs.scores_WK.astype(np.float64)), 0).sum(1)
    return mass_W


def target_ranks(
    outputs: Outputs, targets_W: np.ndarray, codes_IL: np.ndarray, bucket_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each target, and of the first output with the target's first `bucket_levels` codes.

    Ranks are int64 [W], from 1; 0: the output has no such item.
    """
    target_WK = outputs.items_WK == targets_W[:, None]
    bucket_WK = (outputs.codes_WKL[..., :bucket_levels] == codes_IL[targets_W, None, :bucket_levels]).all(-1)
    return _first(target_WK), _first(bucket_WK & (outputs.items_WK != EMPTY))


def _first(hits_WK: np.ndarray) -> np.ndarray:
    """Return the 1-based column of the first hit of each row, 0 without a hit."""
    return np.where(hits_WK.any(1), hits_WK.argmax(1) + 1, 0)
