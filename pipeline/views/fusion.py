"""Fuse what several views say of the next item: the union of their top lists, ranked by a weighted sum.

A *view* lists the items that it expects next, each with a log-probability. An item that a view does not list counts
there as that view's *floor*, which is no higher than any item of the list. So, with lists S_v, floors f_v,
temperatures T_v and weights w_v >= 0, the score of any item i of the catalogue is

    score(i) = sum over views v of  w_v / T_v * (S_v(i) if v lists i, else f_v)

An item that no view lists has the sum of all floors, which no item of a list is below: only the union of the lists has
to be ranked. A temperature calibrates its view: it is the one by which the list, as a softmax, gives the targets of
validation the highest likelihood. It is the same for all items, so that for the ranking w_v / T_v is one number; apart
they say how sure a view is by itself, and how much it counts.

Shape legend: W windows; local: J candidates of a window (the union of the lists, then empty slots), E entries of one
list, S views.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EMPTY = -2  # in a slot that holds no item, as in `decoding.ranking`
LAST = 2**62  # sorts behind every item


@dataclass(frozen=True)
class Listed:
    """A view's list of some windows: items_WE int64 (below 0: none), scores_WE float32 log-probabilities, floor_W.

    An item stands at most once in a row.
    """

    items_WE: Tensor
    scores_WE: Tensor
    floor_W: Tensor


@dataclass(frozen=True)
class Candidates:
    """The union of the lists: items_WJ int64, ascending in each row and EMPTY in unused slots; gains_WJS float32.

    A gain is how far a view has the item above its floor: 0 where the view does not list it.
    """

    items_WJ: Tensor
    gains_WJS: Tensor

    def scores(self, weights_S: Tensor) -> Tensor:
        """Return the weighted gains, float32 [W, J]; -inf in empty slots. They are `score` less the sum of floors."""
        scores_WJ = (self.gains_WJS * weights_S).sum(-1)
        return scores_WJ.masked_fill(self.items_WJ < 0, float("-inf"))


def as_list(items_WE: Tensor, scores_WE: Tensor, margin: float) -> Listed:
    """Return a list whose floor is its lowest score less `margin`; a row without any item has the floor 0."""
    filled_WE = items_WE >= 0
    lowest_W = scores_WE.masked_fill(~filled_WE, float("inf")).amin(1)
    return Listed(items_WE, scores_WE, torch.where(filled_WE.any(1), lowest_W - margin, 0.0))


def union(lists: Sequence[Listed]) -> Candidates:
    """Join the lists: each item once, with its gain by every view."""
    # 1. All entries side by side, sorted by item; a view's gain stands in the view's column.
    # lists 7 3 and 3 -> items 3 3 7; gains (a, 0) (0, b) (c, 0)
    items_WJ = torch.cat([view.items_WE for view in lists], 1)
    items_WJ, order_WJ = torch.where(items_WJ < 0, LAST, items_WJ).sort(dim=1, stable=True)
    columns = []
    for view in lists:
        gain_WE = (view.scores_WE - view.floor_W[:, None]).masked_fill(view.items_WE < 0, 0.0)
        sides = [gain_WE if other is view else torch.zeros_like(other.scores_WE) for other in lists]
        columns.append(torch.cat(sides, 1).gather(1, order_WJ))
    gains_WJS = torch.stack(columns, -1)
    # 2. Equal items are neighbours, one per view at most: the first of them takes the gains of all.
    joined_WJS = gains_WJS.clone()
    for step in range(1, min(len(lists), items_WJ.shape[1])):
        same_WJ = items_WJ[:, step:] == items_WJ[:, :-step]
        joined_WJS[:, :-step] += gains_WJS[:, step:] * same_WJ[..., None]
    first_WJ = torch.ones_like(items_WJ, dtype=torch.bool)
    first_WJ[:, 1:] = items_WJ[:, 1:] != items_WJ[:, :-1]
    return Candidates(torch.where(first_WJ & (items_WJ < LAST), items_WJ, EMPTY), joined_WJS)


def best_first(items_WJ: Tensor, scores_WJ: Tensor, seen_WM: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return items and scores in the order of the scores, of equal scores by item id; EMPTY, -inf behind them.

    Args:
        items_WJ: ascending in each row, EMPTY between them.
        seen_WM: int64, items that leave the ranking; EMPTY where a row has fewer.
    """
    if seen_WM is not None:
        seen_WJ = (items_WJ[:, :, None] == seen_WM[:, None, :]).any(-1)
        items_WJ = items_WJ.masked_fill(seen_WJ, EMPTY)
    scores_WJ = scores_WJ.masked_fill(items_WJ < 0, float("-inf"))
    scores_WJ, order_WJ = scores_WJ.sort(dim=1, descending=True, stable=True)
    return items_WJ.gather(1, order_WJ), scores_WJ


def target_ranks_of(items_WJ: Tensor, scores_WJ: Tensor, targets_W: Tensor) -> Tensor:
    """Return 1 + how many candidates come before the target, of equal scores those with a smaller id; int64 [W].

    0: the target is no candidate. Slots with a score of -inf do not count.

    Args:
        items_WJ: ascending in each row, EMPTY between them.
    """
    hit_WJ = (items_WJ == targets_W[:, None]) & (scores_WJ > float("-inf"))
    score_W = scores_WJ.masked_fill(~hit_WJ, float("-inf")).amax(1)
    ahead_WJ = (scores_WJ > score_W[:, None]) | ((scores_WJ == score_W[:, None]) & (items_WJ < targets_W[:, None]))
    return torch.where(hit_WJ.any(1), 1 + (ahead_WJ & (items_WJ >= 0)).sum(1), 0)
