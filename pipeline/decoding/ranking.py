"""Where each held-out item lands in what the model generates: the one path from a model to ranks.

Validation during training, the final evaluation and the tests all rank here, so that they cannot disagree about what
a history is, what counts as found, or how seen items leave the ranking.

Shape legend: U users ranked, W users of one batch, K places of the beam, L code levels, H items of
the longest history of a batch, I items of the catalogue.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pipeline.artifacts import Splits
from pipeline.decoding.beam_search import Search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.ops.layout import uses_kernels
from pipeline.packing.backbone import Backbone, evaluating
from pipeline.packing.histories import Histories, slices
from pipeline.packing.kept import EvalSkips, KeptItems
from pipeline.packing.shape import Shape

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue
    from pipeline.progress import Progress

DecodingMethod = Literal["constrained", "unconstrained", "exact"]
INVALID = -1  # a generated SID that names no item
EMPTY = -2  # a place that holds nothing: the catalogue is smaller than the beam, or seen items were dropped


@dataclass(frozen=True)
class Ranking:
    """One row per target, in user order.

    positions_U: flat index of the target in the splits. ranks_U int64: 1-based place of the exact item in the beam,
    0 when it is not there; items that share a Semantic ID have a place each, by item id. bucket_ranks_U: the same for
    the first output with the target's codes, the deduplication digit (if there is one) left aside. lengths_U: items of
    the history, before any is skipped; a target without any history cannot be ranked: it counts as a miss (0) and stays
    in every denominator. invalid of the `generated` SIDs name no item.
    """

    users_U: np.ndarray
    positions_U: np.ndarray
    ranks_U: np.ndarray
    bucket_ranks_U: np.ndarray
    lengths_U: np.ndarray
    invalid: int
    generated: int

    @property
    def invalid_share(self) -> float:
        """Generated Semantic IDs that name no item, out of all that were generated."""
        return self.invalid / max(self.generated, 1)


@dataclass(frozen=True)
class Outputs:
    """What the model generated for a batch, best first: items_WK (INVALID, EMPTY where no item), codes_WKL."""

    items_WK: np.ndarray
    codes_WKL: np.ndarray
    scores_WK: np.ndarray


def histories_of(splits: Splits, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The at most `max_history` items before each flat position, in the sequence of the user who owns it.

    Returns:
        (items int32 flat, oldest first; offsets int64 [W + 1]): history w is items[offsets[w]:offsets[w + 1]].
    """
    index, offsets = _history_index(splits, positions)
    return np.asarray(splits.items_N)[index], offsets


def _history_index(splits: Splits, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flat positions of the items of each target's history; offsets)."""
    positions, starts_U = np.asarray(positions, np.int64), np.asarray(splits.offsets)
    first = starts_U[np.searchsorted(starts_U, positions, side="right") - 1]
    begin = np.maximum(first, positions - splits.max_history)
    return slices(begin, positions - begin)


class Ranker:
    """Ranks the held-out item of every user of `part` (`valid` or `test`), for one model after another.

    Args:
        beam: places of the ranking; a target below it is not found.
        decoding: beam search constrained to the catalogue, unconstrained, or `exact`: every item is scored.
        filter_seen: items of the history leave the ranking. The beam is widened by `max_history`, so that `beam`
            places remain; a target that the user already had can then not be found.
        users: rank only these (a process's share); those without a target in `part` are left out.
    """

    def __init__(
        self,
        catalogue: "Catalogue",
        splits: Splits,
        part: str,
        *,
        beam: int,
        decoding: DecodingMethod = "constrained",
        filter_seen: bool = False,
        batch_users: int = 256,
        users: np.ndarray | None = None,
    ):
        self.catalogue, self.beam, self.decoding = catalogue, beam, decoding
        self.drop_seen, self.longest = splits.max_history if filter_seen else 0, splits.max_history
        self.users_U, self.positions_U = splits.targets(part)
        if users is not None:
            chosen = np.isin(self.users_U, users)
            self.users_U, self.positions_U = self.users_U[chosen], self.positions_U[chosen]
        self.index_N, self.offsets = _history_index(splits, self.positions_U)
        self.items_N = np.asarray(splits.items_N)[self.index_N]
        self.times_N = np.asarray(splits.timestamps_N)[self.index_N]
        self.lengths_U, self.targets_U = np.diff(self.offsets), np.asarray(splits.items_N)[self.positions_U]
        # Kernels take any lengths, and a recorded search wants one shape; else equal lengths in one batch, which then
        # is one group.
        self.records = uses_kernels(catalogue.codes_IL.device)
        rows = np.arange(len(self.lengths_U)) if self.records else np.argsort(self.lengths_U, kind="stable")
        rows = rows[self.lengths_U[rows] > 0]
        self.batches = [rows[i : i + batch_users] for i in range(0, len(rows), batch_users)]
        self._search: Search | None = None

    def rank(self, model: Backbone, progress: "Progress | None" = None, eval_skips: EvalSkips | None = None) -> Ranking:
        """The model is put into evaluation mode for the while and left in the mode it was in.

        Args:
            eval_skips: what the model does not see of the histories; `filter_seen` goes by the whole ones.
        """
        ranks_U, bucket_ranks_U = np.zeros_like(self.positions_U), np.zeros_like(self.positions_U)
        codes_IL = self.catalogue.codes_IL.cpu().numpy()
        invalid = generated = 0
        with evaluating(model):
            for rows in self.batches:
                index, offsets = slices(self.offsets[rows], self.lengths_U[rows])
                outputs = self._generate(model, index, offsets, eval_skips)
                ranks_U[rows], bucket_ranks_U[rows] = target_ranks(
                    outputs, self.targets_U[rows], codes_IL, self.catalogue.bucket_levels
                )
                invalid += int((outputs.items_WK == INVALID).sum())
                generated += int((outputs.items_WK != EMPTY).sum())
                if progress is not None:
                    progress.update(len(rows))
        return Ranking(self.users_U, self.positions_U, ranks_U, bucket_ranks_U, self.lengths_U, invalid, generated)

    def _generate(
        self, model: Backbone, index: np.ndarray, offsets: np.ndarray, eval_skips: EvalSkips | None
    ) -> Outputs:
        return generate_items(
            model,
            self.items_N[index],
            offsets,
            beam=self.beam,
            decoding=self.decoding,
            drop_seen=self.drop_seen,
            # What is left of a batch changes with the table of skips, and with it the shapes: nothing to record.
            search=self._recorded(model) if eval_skips is None else None,
            times=self.times_N[index] if model.wants_times else None,
            kept=None if eval_skips is None else eval_skips.kept(self.index_N[index], offsets),
        )

    def _recorded(self, model: Backbone) -> Search | None:
        """One search for all batches of a model, where kernels run; else None."""
        if self.records and (self._search is None or self._search.model is not model):
            self._search = Search(
                model,
                self.beam + self.drop_seen,
                constrained=self.decoding == "constrained",
                shape=Shape.of([self.lengths_U[rows] for rows in self.batches], self.longest),
                longest=self.longest,
            )
        return self._search


def rank_targets(
    model: Backbone,
    catalogue: "Catalogue",
    splits: Splits,
    part: str,
    *,
    progress: "Progress | None" = None,
    eval_skips: EvalSkips | None = None,
    **options: Any,
) -> Ranking:
    """`Ranker` for one model; options are its own."""
    return Ranker(catalogue, splits, part, **options).rank(model, progress, eval_skips)


@torch.no_grad()
def generate_items(
    model: Backbone,
    items: np.ndarray,
    offsets: np.ndarray,
    *,
    beam: int,
    decoding: DecodingMethod = "constrained",
    drop_seen: int = 0,
    search: Search | None = None,
    times: np.ndarray | None = None,
    kept: KeptItems | None = None,
) -> Outputs:
    """What the model expects next after each history (flat items and offsets, none of them empty), best first.

    Args:
        drop_seen: drop the items of the history, from a beam wider by this many places. 0: keep them.
        search: of this model, width and kind, where there will be more batches.
        times: seconds, when each of the items came; for a model that wants it.
        kept: what the model sees of the histories; None: all.
    """
    width, codes_IL = beam + drop_seen, model.catalogue.codes_IL
    kept_NS = kept.tokens_NS if kept else None
    seen_N, starts, times_N = kept.items(items, offsets, times) if kept else (items, offsets, times)
    if decoding == "exact":
        histories = Histories.pack(seen_N, starts, codes_IL.device, times_N=times_N, kept_NS=kept_NS)
        scores_WI = score_catalogue(model, histories)
        order_WK = torch.argsort(scores_WI, dim=1, descending=True, stable=True)[:, :width]
        outputs = Outputs(
            order_WK.cpu().numpy(), codes_IL[order_WK].cpu().numpy(), scores_WI.gather(1, order_WK).cpu().numpy()
        )
    else:
        search = search or Search(model, width, constrained=decoding == "constrained")
        beams = search(seen_N, starts, times_N, kept_NS)
        scores_WK = beams.scores_WK.float().cpu().numpy()
        items_WK = np.where(np.isneginf(scores_WK), EMPTY, beams.items_WK.cpu().numpy())
        outputs = Outputs(items_WK, beams.codes_WKL.cpu().numpy(), scores_WK)
    return without_seen(outputs, items, offsets, beam) if drop_seen else outputs


def without_seen(outputs: Outputs, items: np.ndarray, offsets: np.ndarray, beam: int) -> Outputs:
    """The first `beam` outputs that are not in the row's history; places that cannot be filled are EMPTY."""
    lengths_W = np.diff(offsets)
    history_WH = np.full((len(lengths_W), lengths_W.max()), EMPTY, np.int64)
    history_WH[np.arange(history_WH.shape[1]) < lengths_W[:, None]] = items
    seen_WK = (outputs.items_WK[:, :, None] == history_WH[:, None, :]).any(-1)
    keep_WK = np.argsort(seen_WK, axis=1, kind="stable")[:, :beam]
    seen_WK, items_WK, scores_WK = (
        np.take_along_axis(array, keep_WK, 1) for array in (seen_WK, outputs.items_WK, outputs.scores_WK)
    )
    codes_WKL = np.take_along_axis(outputs.codes_WKL, keep_WK[..., None], 1)
    return Outputs(np.where(seen_WK, EMPTY, items_WK), codes_WKL, scores_WK)


def target_ranks(
    outputs: Outputs, targets_W: np.ndarray, codes_IL: np.ndarray, bucket_levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """1-based place of each target, and of the first output with its first `bucket_levels` codes; 0: not there."""
    target_WK = outputs.items_WK == targets_W[:, None]
    bucket_WK = (outputs.codes_WKL[..., :bucket_levels] == codes_IL[targets_W, None, :bucket_levels]).all(-1)
    return _first(target_WK), _first(bucket_WK & (outputs.items_WK != EMPTY))


def _first(hits_WK: np.ndarray) -> np.ndarray:
    return np.where(hits_WK.any(1), hits_WK.argmax(1) + 1, 0)
