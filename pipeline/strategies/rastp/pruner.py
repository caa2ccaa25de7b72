"""rastp's pruner decides how many tokens of a window go on, which ones, and where they lie afterwards.

On a GPU one kernel (choose_kernel.py) chooses single tokens by any score but `random`; torch does all else: whole items
and pools, and everything on a CPU. `Pruner._choose` takes this decision.

A *unit* is kept or dropped as one: it is a scored token, or with `unit: item` a whole item. A *pool* is a run of units
of one window that becomes one unit.

Shape legend: W windows, N items of all histories, T tokens on the axis before, L levels, d width of the model; local: S
tokens of one item (L codes, then the separator), E tokens of an item that are scored, F = N * S tokens of all items, O
slots of the axis after, U units of all windows, G units of the largest pool.
"""

import math
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.gather import gather_unique
from pipeline.ops.layout import Mass, uses_kernels
from pipeline.packing.histories import Histories
from pipeline.packing.pruning import PrunedTokens
from pipeline.strategies.rastp.config import RastpConfig

Count = TypeVar("Count", int, Tensor)  # a count of one window, known on the host, or of many windows


class Pruner:
    """Shorten the sequences of a batch (a `packing.pruning.TokenPruner`).

    All sizes follow from the lengths of the histories, which the host knows: nothing waits for the device.

    Args:
        levels: codes of one item (L).
        separators: a separator follows the codes of an item.
        pad_to: as in `strategy.PrunedNetwork`.
    """

    def __init__(self, config: RastpConfig, levels: int, separators: bool, pad_to: int):
        self.config = config
        self.levels = levels
        self.tokens_per_item = levels + separators  # S
        self.after_layer = config.after_layer
        self.at_eval = config.at_eval
        self.keep_positions = config.keep_positions
        self.pad_to = pad_to if config.counts_padding else 0
        self.base_length = config.base_length or self.pad_to
        mass = Mass(after_dropout=config.score_dropout == "after", padded_queries=config.padded_queries == "count")
        self.mass = mass if config.scores_mass else None
        self.scored = levels if config.separators == "keep" else self.tokens_per_item  # E
        self.whole_items = (config.unit if config.method == "prune" else config.pool_unit) == "item"
        self.units_per_item = 1 if self.whole_items else self.scored
        # A fraction, because floor(keep x length) of floats may be one too few: 0.29 of 100 tokens are 29, not 28.
        share = max(Fraction(config.keep).limit_denominator(10_000), Fraction(1, 10_000))
        self.numerator, self.denominator = share.numerator, share.denominator
        self.largest_pool = math.ceil(2 / share) - 1  # G; `_pool` says why

    # ------------------------------------------------------------------------------------------------ how many

    def budget(self, items: Count) -> Count:
        """Return the units that windows with `items` items keep: Eq. 7's floor(keep x length), at least `min_tokens`.

        keep 1/3, min_tokens 4, 3 codes per item: 10 items -> 30 units, 10 kept; 2 items -> 6 units, 4 kept
        """
        units = items * self.units_per_item
        tokens = max(self.config.min_tokens, self.scored if self.config.keep_last_item else 0)
        # The length in Eq. 7 is the window's, or with `base: padded` that of every padded window (as a tensor of one
        # value where `items` is a tensor).
        length = units if self.config.base == "real" else 0 * units + self._padded_units()
        least = -(-tokens // self.scored) if self.whole_items else tokens
        return _smaller(units, _larger(length * self.numerator // self.denominator, 0 * units + least))

    def slots(self, items: Count) -> Count:
        """Return the slots that windows with `items` items need afterwards: their budget, and slots for separators.

        A separator follows when a token of its item is kept: 10 kept tokens of 8 items bring at most 8 separators.
        """
        budget = self.budget(items)
        if self.whole_items:
            return budget * self.tokens_per_item
        return budget + _smaller(budget, items) if self._separators_follow else budget

    def size(self, items_W: np.ndarray, longest: int, pad_to: int) -> int:
        """Return the slots of all windows afterwards; in a padded batch every window has as many as the longest."""
        if pad_to:
            return len(items_W) * self._padded_capacity(longest, pad_to)
        return int(self.slots(torch.from_numpy(items_W)).sum())

    def _padded_capacity(self, longest: int, pad_to: int) -> int:
        """Return the slots of each window of a padded batch: with `base: padded` those of a window without padding."""
        if self.config.base == "padded":
            longest = max(self._padded_units() // self.units_per_item, 1)
        return min(self.slots(longest), pad_to)

    @property
    def _separators_follow(self) -> bool:
        """Return whether separators stay or leave with their item's tokens; then only the device knows how many."""
        return not self.whole_items and self.scored < self.tokens_per_item

    def _padded_units(self) -> int:
        """Return the units in `base_length` positions: S 4, E 3, length 10 -> 2 items and 2 more tokens, 8 units."""
        items, rest = divmod(self.base_length, self.tokens_per_item)
        return items if self.whole_items else items * self.scored + min(rest, self.scored)

    # ------------------------------------------------------------------------------------------------ which

    def __call__(
        self, h_Td: Tensor, mass_T: Tensor | None, histories: Histories, *, size: int, training: bool
    ) -> tuple[Tensor, PrunedTokens]:
        """Return the states that go on [O, d], chosen or pooled, and their tokens; see `TokenPruner`."""
        pruned = self._choose(h_Td, mass_T, histories, size, training)
        if self.config.method == "prune":
            return gather_unique(h_Td, pruned.source_O, pruned.slot_T), pruned
        return self._pool(h_Td, pruned, histories), pruned

    def _choose(
        self, h_Td: Tensor, mass_T: Tensor | None, histories: Histories, size: int, training: bool
    ) -> PrunedTokens:
        """Choose the tokens that go on, or those that begin a pool."""
        pools = self.config.method != "prune"
        random = self.config.score == "random"
        # A window's slots: as many as it may need, or in a padded batch as many as the longest window.
        capacity_W = self.slots(histories.lengths_W)
        if histories.pad_to:
            capacity_W = torch.full_like(capacity_W, self._padded_capacity(histories.longest, histories.pad_to))
        if uses_kernels(h_Td.device) and not (pools or random or self.whole_items):
            scores_T = self._last_first(self._importance(h_Td, mass_T), histories)
            return self._choose_at_once(scores_T, capacity_W, histories, size)
        items = ItemPositions(histories, self.tokens_per_item)
        if pools:
            kept_U = self._first_of_pools(items)
        else:
            scores_T = _random(items, histories, h_Td, training) if random else self._importance(h_Td, mass_T)
            kept_U = self._best(self._last_first(scores_T, histories)[items.index_NS], items)
        return self._compact(self._spread(kept_U), capacity_W, items, histories, size, tokens=len(h_Td))

    def _choose_at_once(self, scores_T: Tensor, capacity_W: Tensor, histories: Histories, size: int) -> PrunedTokens:
        """Do what `_best`, `_spread` and `_compact` do, in one kernel."""
        from pipeline.strategies.rastp.choose_kernel import choose_tokens

        source_O, slot_T, position_O, kept_NS, taken_W = choose_tokens(
            scores_T,
            histories.lengths_W,
            len(histories.items_N),
            self.budget(histories.lengths_W),
            F.pad(capacity_W.cumsum(0), (1, 0)),
            size=size,
            pad_to=histories.pad_to,
            tokens_per_item=self.tokens_per_item,
            scored=self.scored,
        )
        return self._pruned(
            histories,
            position_O,
            source_O=source_O,
            slot_T=slot_T,
            taken_W=taken_W,
            capacity_W=capacity_W,
            kept_NS=kept_NS,
        )

    def _pruned(
        self,
        histories: Histories,
        position_O: Tensor,
        **tokens: Tensor,
    ) -> PrunedTokens:
        """Add the bounds of every window, which the host knows, and positions if later blocks use them.

        Args:
            tokens: the other fields of `PrunedTokens`.
        """
        reach = histories.pad_to or histories.longest * self.tokens_per_item
        positions = position_O if self.keep_positions else None
        longest = self._padded_capacity(histories.longest, reach)
        return PrunedTokens(position_O=positions, longest=longest, reach=reach, **tokens)

    def _importance(self, h_Td: Tensor, mass_T: Tensor | None) -> Tensor:
        """Return the importance of each token [T], Eq. 4 to 6, without a gradient: it only chooses."""
        score = self.config.score
        if score == "attention" and mass_T is not None:
            return mass_T
        norm_T: Tensor = torch.linalg.vector_norm(h_Td.detach(), ord=2 if score == "l2" else 1, dim=1)
        return norm_T if mass_T is None else mass_T * norm_T

    def _last_first(self, scores_T: Tensor, histories: Histories) -> Tensor:
        """Return the scores, with `keep_last_item` above all others for the tokens of each window's last item."""
        if not self.config.keep_last_item:
            return scores_T
        items_W = histories.lengths_W.cumsum(0) - histories.lengths_W
        rows_W = torch.arange(len(items_W), device=items_W.device)
        start_W = rows_W * histories.pad_to if histories.pad_to else items_W * self.tokens_per_item
        # Two items of 2 tokens from 0 on, three from 4 on -> tokens 2 3 | 8 9
        last_W = start_W + (histories.lengths_W - 1) * self.tokens_per_item
        last_WS = last_W[:, None] + torch.arange(self.tokens_per_item, device=items_W.device)
        return scores_T.index_fill(0, last_WS.flatten(), math.inf)

    def _best(self, scores_NS: Tensor, items: "ItemPositions") -> Tensor:
        """Apply Eq. 7: return True for each window's units of highest score, bool [U].

        An item's score is the sum of its tokens' scores.
        """
        scores_NE = scores_NS[:, : self.scored]
        scores_U = scores_NE.sum(1) if self.whole_items else scores_NE.flatten()
        window_U = items.window_N.repeat_interleave(self.units_per_item, output_size=len(scores_U))
        return best_of_segments(scores_U, window_U, items.first_W * self.units_per_item, self.budget(items.lengths_W))

    def _spread(self, kept_U: Tensor) -> Tensor:
        """Return the kept tokens of kept units, bool [N, S]: all tokens of an item, and separators of kept tokens.

        two items with 2 codes and a separator, units 0 1, 0 0 -> tokens 0 1 1, 0 0 0
        """
        if self.whole_items:
            return kept_U[:, None].expand(-1, self.tokens_per_item)
        kept_NE = kept_U.view(-1, self.scored)
        return torch.cat([kept_NE, kept_NE.any(1, keepdim=True)], 1) if self._separators_follow else kept_NE

    def _compact(
        self,
        kept_NS: Tensor,
        capacity_W: Tensor,
        items: "ItemPositions",
        histories: Histories,
        size: int,
        *,
        tokens: int,
    ) -> PrunedTokens:
        """Give each kept token a slot: windows one after another, each with the slots of its capacity.

        Example of the comments: two windows with one item and two items, two tokens per item; kept 01, 10 11;
        capacities 2 and 3.

        Args:
            capacity_W: int64, the slots of each window, all filled or not.
            size: O.
            tokens: T.
        """
        kept_F = kept_NS.flatten()
        token_F = items.index_NS.flatten()  # where the encoder's axis has each token of an item: 0 1, 2 3 4 5
        # The tokens that are kept up to each token (itself included) and up to each window's end: 0 1, 2 2 3 4 and 1, 4
        count_F = kept_F.cumsum(0)
        ends_W = count_F[(items.first_W + items.lengths_W) * self.tokens_per_item - 1]
        taken_W = ends_W.diff(prepend=ends_W.new_zeros(1))  # slots that are filled: 1, 3
        # The slot of a kept token: its window's first slot (0, 2) plus the kept tokens of the window before it:
        # . 0, 2 . 3 4
        window_F = items.window_N.repeat_interleave(self.tokens_per_item, output_size=len(count_F))
        slot_F = (capacity_W.cumsum(0) - capacity_W - ends_W + taken_W)[window_F] + count_F - 1
        # The inverse, the token of each slot: 1, 2 4 5 and 0 in the empty slot. All dropped tokens are written to one
        # slot after the last, which is cut off.
        source_O = torch.zeros(size + 1, dtype=torch.int64, device=kept_NS.device)
        numbers_F = torch.arange(len(count_F), device=kept_NS.device)
        source_O = source_O.scatter_(0, slot_F.where(kept_F, size), numbers_F)[:-1]
        # The slot of each token on the encoder's axis: -1 0, 2 -1 3 4. Padding, which is no token of an item, stays -1.
        slot_T = source_O.new_full((tokens,), -1).scatter_(0, token_F, slot_F.where(kept_F, -1))
        return self._pruned(
            histories,
            items.position_NS.flatten()[source_O],
            source_O=token_F[source_O],
            slot_T=slot_T,
            taken_W=taken_W,
            capacity_W=capacity_W,
            kept_NS=kept_NS,
        )

    # ------------------------------------------------------------------------------------------------ pooling

    def _first_of_pools(self, items: "ItemPositions") -> Tensor:
        """Return True for each unit that begins a pool, bool [U]; a window's budget is its number of pools.

        The runs are equally long, give or take a unit: 5 units, 2 pools -> pools 0 0 0 1 1, begins 1 0 0 1 0
        """
        unit_U, pools_U, units_U = self._runs(items)
        return unit_U * pools_U // units_U != (unit_U - 1) * pools_U // units_U

    def _runs(self, items: "ItemPositions") -> tuple[Tensor, Tensor, Tensor]:
        """Return each unit's number within its window, its window's pools and its window's units, int64 [U] each."""
        units = len(items.window_N) * self.units_per_item
        window_U = items.window_N.repeat_interleave(self.units_per_item, output_size=units)
        unit_U = torch.arange(units, device=window_U.device) - (items.first_W * self.units_per_item)[window_U]
        return unit_U, self.budget(items.lengths_W)[window_U], (items.lengths_W * self.units_per_item)[window_U]

    def _pool(self, h_Td: Tensor, pruned: PrunedTokens, histories: Histories) -> Tensor:
        """Return the mean or maximum [O, d] over the pool that each slot's token begins; a separator remains as it is.

        Items are pooled level by level. A pool has ceil(1 / keep) units, give or take one; only in histories of fewer
        than 2 / keep units can it have more, where flooring the budget leaves one pool.

        Example of the comments: one window of five items without separators, one level, two pools: 0 0 0 1 1.
        """
        items = ItemPositions(histories, self.tokens_per_item)
        source_O = pruned.source_O
        # The token that begins each pool (0 and 3), counted without padding: its item, and its number in the item.
        if histories.pad_to:
            first_W = items.first_W * self.tokens_per_item
            source_O = first_W[source_O // histories.pad_to] + source_O % histories.pad_to
        item_O = source_O // self.tokens_per_item
        token_O = source_O % self.tokens_per_item
        # The size of each pool, from its first unit to the first unit of the next: 3 and 2. `size_U` is right only for
        # units that begin a pool, and only these are read: 3 . . 2 . ; a separator is a pool of one.
        unit_U, pools_U, units_U = self._runs(items)
        pool_U = unit_U * pools_U // units_U
        size_U = -((pool_U + 1) * -units_U // pools_U) - unit_U
        first_O = item_O if self.whole_items else item_O * self.scored + token_O.clamp(max=self.scored - 1)
        size_O = size_U[first_O].where(token_O < self.scored, 1)
        # The units of each pool in G columns; a smaller pool repeats its first unit, which `real_OG` masks:
        # units 0 1 2 and 3 4 3, real 1 1 1 and 1 1 0
        step_G = torch.arange(self.largest_pool, device=source_O.device)
        real_OG = step_G < size_O[:, None]
        unit_OG = (first_O[:, None] + step_G * real_OG).clamp(max=len(unit_U) - 1)
        # From units to tokens on the encoder's axis: the same level of each item, or the token that the unit is.
        if self.whole_items:
            index_OG = items.index_NS[unit_OG, token_O[:, None]]
        else:
            index_OG = items.index_NS[unit_OG // self.scored, unit_OG % self.scored]
            separator_O1 = items.index_NS[item_O, token_O][:, None]
            index_OG = torch.where(token_O[:, None] < self.scored, index_OG, separator_O1)
        # Each token is in one pool at most, so that the gather's gradient needs no sum.
        h_OGd = gather_unique(h_Td, index_OG.flatten(), _pool_slots(index_OG, real_OG, pruned)).view(
            *index_OG.shape, -1
        )
        if self.config.method == "max_pool":
            return h_OGd.masked_fill(~real_OG[..., None], -math.inf).amax(1)
        return (h_OGd * real_OG[..., None]).sum(1) / size_O[:, None]


def _pool_slots(index_OG: Tensor, real_OG: Tensor, pruned: PrunedTokens) -> Tensor:
    """Return the entry of [O * G] that holds each token, int64 [T]; -1: the token is in no pool."""
    # Only filled slots count: empty ones repeat a token that another slot holds.
    dropped = len(pruned.slot_T)
    taken_O = torch.zeros(len(index_OG) + 1, dtype=torch.bool, device=index_OG.device).index_fill_(
        0, pruned.slot_T.where(pruned.slot_T >= 0, len(index_OG)), True
    )[:-1]
    # What does not count is written to one entry after the last token, which is cut off.
    slot_T = pruned.slot_T.new_full((dropped + 1,), -1)
    slot_T.scatter_(
        0,
        index_OG.where(real_OG & taken_O[:, None], dropped).flatten(),
        torch.arange(index_OG.numel(), device=index_OG.device),
    )
    return slot_T[:-1]


def _smaller(a: Count, b: Count) -> Count:
    return torch.minimum(a, b) if isinstance(a, Tensor) else min(a, b)


def _larger(a: Count, b: Count) -> Count:
    return torch.maximum(a, b) if isinstance(a, Tensor) else max(a, b)


class ItemPositions:
    """`ItemPositions` hold the positions of a batch's items and of their tokens, all on the device.

    Example of the comments: windows of 1 item and 2 items, 2 tokens per item, packed.
    """

    def __init__(self, histories: Histories, tokens_per_item: int):
        count = len(histories.items_N)
        self.lengths_W = histories.lengths_W
        self.first_W = self.lengths_W.cumsum(0) - self.lengths_W  # each window's first item: 0, 1
        self.window_N = torch.repeat_interleave(self.lengths_W, output_size=count)  # each item's window: 0 1 1
        token_S = torch.arange(tokens_per_item, device=self.lengths_W.device)
        item_N = torch.arange(count, device=self.lengths_W.device)
        # Each token's position in its window: 0 1 | 0 1, 2 3
        self.position_NS = (item_N - self.first_W[self.window_N])[:, None] * tokens_per_item + token_S
        # Each token's index on the encoder's axis: 0 1 | 2 3, 4 5; padded to 6 positions: 0 1 | 6 7, 8 9
        start_N = (
            self.window_N * histories.pad_to if histories.pad_to else self.first_W[self.window_N] * tokens_per_item
        )
        self.index_NS = start_N[:, None] + self.position_NS


def best_of_segments(scores_U: Tensor, segment_U: Tensor, first_W: Tensor, budget_W: Tensor) -> Tensor:
    """Return True for the `budget_W` highest scores of each segment, bool [U]; of equal scores the earlier is higher.

    Args:
        segment_U: int64, ascending: the segment of each score.
        first_W: int64, the index of each segment's first score.
    """
    # Sorted by score, then stably by segment: scores 1 3 2 | 5 4 -> order 1 2 0 | 3 4, ranks 0 1 2 | 0 1
    order_U = scores_U.argsort(descending=True, stable=True)
    order_U = order_U[segment_U[order_U].argsort(stable=True)]
    rank_U = torch.arange(len(scores_U), device=scores_U.device) - first_W[segment_U]
    return torch.empty_like(order_U, dtype=torch.bool).scatter_(0, order_U, rank_U < budget_W[segment_U])


def _random(items: ItemPositions, histories: Histories, h_Td: Tensor, training: bool) -> Tensor:
    """Return uniform scores [T]; outside of training hashes of item and position, so that evaluations repeat."""
    if training:
        return torch.rand(len(h_Td), device=h_Td.device)
    scores_T = torch.zeros(len(h_Td), device=h_Td.device)
    mixed_NS = (histories.items_N[:, None] * 0x9E3779B1 + items.position_NS * 0x85EBCA6B + 1) & 0xFFFFFFFF
    for factor in (0x45D9F3B, 0x2C1B3C6D):
        mixed_NS = ((mixed_NS ^ (mixed_NS >> 16)) * factor) & 0xFFFFFFFF
    return scores_T.scatter_(0, items.index_NS.flatten(), (mixed_NS ^ (mixed_NS >> 16)).flatten() / 2**32)
