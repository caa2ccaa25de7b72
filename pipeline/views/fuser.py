"""Rank by any view, or by the fusion of all: what evaluation, `recommend`, the export and a served model share.

Shape legend: W windows, N items of the histories end to end, K items of a ranking; local: E entries of a list, J
candidates, S views, M items of the longest history.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.decoding.beam_search import Search
from pipeline.decoding.exhaustive import score_items
from pipeline.decoding.ranking import FoundBatch, Outputs
from pipeline.generator import Generator
from pipeline.packing.histories import Histories
from pipeline.views.counting import Counting
from pipeline.views.fusion import EMPTY, Candidates, Listed, best_first
from pipeline.views.lists import ENTRIES, CountingView, counting_view, model_list
from pipeline.views.retrieval import retrieved_items

RESCORED = 50  # candidates that the generator scores exactly in the exact form


@dataclass(frozen=True)
class Fuser:
    """A `Fuser` lists what each view expects and joins the lists.

    dense, counting: None where that view is missing.
    """

    generator: Generator
    dense: Generator | None
    counting: CountingView | None

    @classmethod
    def of(
        cls, generator: Generator, dense: Generator | None, counted: Counting | None, backward: float = 1.0
    ) -> "Fuser":
        """Build the views on the device of the generator; `backward` is counting's (`CountingView`)."""
        device = generator.catalogue.codes_IL.device
        return cls(generator, dense, None if counted is None else counting_view(counted, device, backward))

    @property
    def device(self) -> torch.device:
        """Return the device of all views."""
        return self.generator.catalogue.codes_IL.device

    @property
    def views(self) -> tuple[str, ...]:
        """Return the names of the views that there are, generator, dense, counting, in this order."""
        there = {"generator": True, "dense": self.dense is not None, "counting": self.counting is not None}
        return tuple(name for name, is_there in there.items() if is_there)

    def lists(self, found: Outputs, beside: Outputs | None, items_N: np.ndarray, offsets: np.ndarray) -> list[Listed]:
        """Return the list of each view, in the order of `views`.

        Args:
            found: what the generator's search found for these histories.
            beside: what `retrieve` found for them.
            items_N: the items of all histories, end to end, oldest first.
            offsets: history w is items_N[offsets[w]:offsets[w + 1]], one item at least.
        """
        lists = self.model_lists(found, beside)
        if self.counting is not None:
            lists.append(self.counting.list(items_N, offsets))
        return lists

    def model_lists(self, found: Outputs, beside: Outputs | None) -> list[Listed]:
        """Return the lists of generator and dense retriever; arguments are those of `lists`."""
        lists = [model_list(found, self.device)]
        if beside is not None:
            lists.append(model_list(beside.first(self.dense_entries), self.device))
        return lists

    def retrieve(
        self, items_N: np.ndarray, offsets: np.ndarray, *, width: int = 0, search: Search | None = None
    ) -> Outputs | None:
        """Return what the dense retriever expects after each history, best first; None where there is no retriever.

        Args:
            items_N: the items of all histories, end to end, oldest first.
            offsets: history w is items_N[offsets[w]:offsets[w + 1]], one item at least.
            width: as in `retrieved`.
            search: the retriever's, `retrieved(width)` wide, where more batches will follow; None: a new one.
        """
        if self.dense is None:
            return None
        return retrieved_items(self.dense, items_N, offsets, beam=self.retrieved(width), search=search)

    def retrieved(self, width: int = 0) -> int:
        """Return how many items `retrieve` finds: those of a list, and at least `width`, where there are so many."""
        return min(max(ENTRIES, width), 0 if self.dense is None else len(self.dense.items))

    @property
    def dense_entries(self) -> int:
        """Return how many items the dense retriever lists."""
        return self.retrieved()

    def exact(
        self, candidates: Candidates, slopes_S: Tensor, floor_W: Tensor, found: FoundBatch, drop_seen: bool
    ) -> Candidates:
        """Return the candidates with the generator's exact gain for the best RESCORED of the floored ranking.

        Args:
            slopes_S: weight over temperature of each view.
            floor_W: the generator's floor in each window.
            drop_seen: items of the history leave the ranking before the best are taken.
        """
        seen_WM = history_rows(found.items_N, found.offsets, self.device) if drop_seen else None
        items_WJ, _ = best_first(candidates.items_WJ, candidates.scores(slopes_S), seen_WM)
        chosen_WK = items_WJ[:, :RESCORED]
        inputs = (found.items_N, found.offsets, found.times_N)
        items_N, offsets, times_N = found.kept.items(*inputs) if found.kept else inputs
        kept_NS = found.kept.tokens_NS if found.kept else None
        actions_NA = found.kept.rows(found.actions_NA) if found.kept else found.actions_NA
        histories = Histories.pack(
            items_N, offsets, self.device, times_N=times_N, actions_NA=actions_NA, kept_NS=kept_NS
        )
        gains_WK = score_items(self.generator.model, histories, chosen_WK) - floor_W[:, None]
        # Back to the slots of the candidates: a candidate that was not chosen keeps its gain.
        same_WJK = (candidates.items_WJ[:, :, None] == chosen_WK[:, None, :]) & (chosen_WK[:, None, :] >= 0)
        exact_WJ = torch.where(same_WJK, gains_WK[:, None, :], 0.0).sum(-1)
        gains_WJS = candidates.gains_WJS.clone()
        gains_WJS[..., 0] = torch.where(same_WJK.any(-1), exact_WJ, gains_WJS[..., 0])
        return Candidates(candidates.items_WJ, gains_WJS)


def history_rows(items_N: np.ndarray, offsets: np.ndarray, device: torch.device | str) -> Tensor:
    """Return the items of each history as a row, int64 [W, M], EMPTY behind them.

    lengths 2, 1 of items 7 9 | 4 -> [[7, 9], [4, EMPTY]]
    """
    lengths_W = np.diff(offsets)
    rows_WM = np.full((len(lengths_W), lengths_W.max(initial=1)), EMPTY, np.int64)
    rows_WM[np.arange(rows_WM.shape[1]) < lengths_W[:, None]] = items_N
    return torch.from_numpy(rows_WM).to(device)


def fused_outputs(
    candidates: Candidates, slopes_S: Tensor, codes_IL: Tensor, seen_WM: Tensor | None, k: int
) -> Outputs:
    """Return the first k items of the fused ranking; scores are logarithms of shares of all candidates.

    Args:
        slopes_S: weight over temperature of each view.
        seen_WM: items that leave the ranking, as `history_rows` gives them; None: none.
    """
    items_WJ, scores_WJ = best_first(candidates.items_WJ, candidates.scores(slopes_S), seen_WM)
    scores_WJ = (scores_WJ - torch.logsumexp(scores_WJ, 1, keepdim=True)).nan_to_num(nan=float("-inf"))
    items_WK = items_WJ[:, :k]
    codes_WKL = codes_IL[items_WK.clamp(min=0)]
    return Outputs(items_WK.cpu().numpy(), codes_WKL.cpu().numpy(), scores_WJ[:, :k].cpu().numpy())
