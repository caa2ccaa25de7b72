"""rastp's pruner: how many tokens of a window go on, which ones, and where they lie afterwards.

Where kernels run, single tokens are chosen by one of them (choose_kernel.py), whatever their score but `random`; whole
items and pools, and everything elsewhere, are torch. `Pruner._choose` says which.

Shape legend: W windows, N items of all windows, S tokens of one item (L codes, then the separator), E of them that are
scored, T tokens before, O places after, U units that are kept or dropped as one (tokens or items), G units of the
largest pool, d model width.
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

Count = TypeVar("Count", int, Tensor)  # of one window, known on the host, or of many


class Pruner:
    """Shortens the sequences of a batch (a `packing.pruning.TokenPruner`).

    All sizes follow from the lengths of the histories, which the host knows: nothing waits for the device.

    Args:
        levels: codes of one item (L).
        separators: whether a separator follows them.
        pad_to: as in `strategy.PrunedNetwork`.
    """

    def __init__(self, config: RastpConfig, levels: int, separators: bool, pad_to: int):
        self.config, self.levels, self.tokens_per_item = config, levels, levels + separators
        self.after_layer, self.at_eval, self.keep_positions = config.after_layer, config.at_eval, config.keep_positions
        self.pad_to = pad_to if config.counts_padding else 0
        mass = Mass(after_dropout=config.score_dropout == "after", padded_queries=config.padded_queries == "count")
        self.mass = mass if config.scores_mass else None
        self.scored = levels if config.separators == "keep" else self.tokens_per_item  # E
        self.whole_items = (config.unit if config.method == "prune" else config.pool_unit) == "item"
        self.units_per_item = 1 if self.whole_items else self.scored
        share = Fraction(config.keep).limit_denominator(10_000)  # 1/3 is a third, 0.29 of 100 are 29
        self.numerator, self.denominator = share.numerator, share.denominator
        self.largest_pool = math.ceil(2 / share) - 1

    # ------------------------------------------------------------------------------------------------ how many

    def budget(self, items: Count) -> Count:
        """Units that stay of windows with these many items: Eq. 7's floor(keep x length), at least `min_tokens`."""
        units = items * self.units_per_item
        length = units if self.config.base == "real" else 0 * units + self._padded_units()
        least = -(-self.config.min_tokens // self.scored) if self.whole_items else self.config.min_tokens
        return _smaller(units, _larger(length * self.numerator // self.denominator, 0 * units + least))

    def slots(self, items: Count) -> Count:
        """Places that windows with these many items take afterwards: their budget, and room for its separators."""
        budget = self.budget(items)
        if self.whole_items:
            return budget * self.tokens_per_item
        return budget + _smaller(budget, items) if self._separators_follow else budget

    def size(self, items_W: np.ndarray, longest: int, pad_to: int) -> int:
        """Places of all windows afterwards; of a padded batch all have as many as the longest needs."""
        if pad_to:
            return len(items_W) * self._padded_capacity(longest, pad_to)
        return int(self.slots(torch.from_numpy(items_W)).sum())

    def _padded_capacity(self, longest: int, pad_to: int) -> int:
        """Places of every window of a padded batch. Where the padded length sets the budget, it sets this too."""
        if self.config.base == "padded":
            longest = max(self._padded_units() // self.units_per_item, 1)
        return min(self.slots(longest), pad_to)

    @property
    def _separators_follow(self) -> bool:
        """Separators stay or go with their item's tokens, so their number is known on the device only."""
        return not self.whole_items and self.scored < self.tokens_per_item

    def _padded_units(self) -> int:
        items, rest = divmod(self.pad_to, self.tokens_per_item)
        return items if self.whole_items else items * self.scored + min(rest, self.scored)

    # ------------------------------------------------------------------------------------------------ which

    def __call__(
        self, h_Td: Tensor, mass_T: Tensor | None, histories: Histories, *, size: int, training: bool
    ) -> tuple[Tensor, PrunedTokens]:
        pruned = self._choose(h_Td, mass_T, histories, size, training)
        if self.config.method == "prune":
            return gather_unique(h_Td, pruned.source_O, pruned.slot_T), pruned
        return self._pool(h_Td, pruned, histories), pruned

    def _choose(
        self, h_Td: Tensor, mass_T: Tensor | None, histories: Histories, size: int, training: bool
    ) -> PrunedTokens:
        pools, random = self.config.method != "prune", self.config.score == "random"
        capacity_W = self.slots(histories.lengths_W)
        if histories.pad_to:
            capacity_W = torch.full_like(capacity_W, self._padded_capacity(histories.longest, histories.pad_to))
        if uses_kernels(h_Td.device) and not (pools or random or self.whole_items):
            return self._choose_at_once(self._importance(h_Td, mass_T), capacity_W, histories, size)
        items = ItemPositions(histories, self.tokens_per_item)
        if pools:
            kept_U = self._first_of_pools(items)
        else:
            scores_T = _random(items, histories, h_Td, training) if random else self._importance(h_Td, mass_T)
            kept_U = self._best(scores_T[items.index_NS], items)
        return self._compact(self._spread(kept_U), capacity_W, items, histories, size, tokens=len(h_Td))

    def _choose_at_once(self, scores_T: Tensor, capacity_W: Tensor, histories: Histories, size: int) -> PrunedTokens:
        """As `_best`, `_spread` and `_compact`, in one kernel."""
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
        **where: Tensor,
    ) -> PrunedTokens:
        """Add the bounds of every window, known on the host; positions only where later blocks get them."""
        reach = histories.pad_to or histories.longest * self.tokens_per_item
        positions = position_O if self.keep_positions else None
        longest = self._padded_capacity(histories.longest, reach)
        return PrunedTokens(position_O=positions, longest=longest, reach=reach, **where)

    def _importance(self, h_Td: Tensor, mass_T: Tensor | None) -> Tensor:
        """Eq. 4 to 6, [T]; no gradient flows through what only chooses."""
        h_Td, score = h_Td.detach(), self.config.score
        if score == "attention" and mass_T is not None:
            return mass_T
        norm_T = torch.linalg.vector_norm(h_Td, ord=2 if score == "l2" else 1, dim=1)
        return norm_T if mass_T is None else mass_T * norm_T

    def _best(self, scores_NS: Tensor, items: "ItemPositions") -> Tensor:
        """Eq. 7: True for each window's units of highest score, [U]. An item's score is the sum of its tokens'."""
        scores_NE = scores_NS[:, : self.scored]
        scores_U = scores_NE.sum(1) if self.whole_items else scores_NE.flatten()
        window_U = items.window_N.repeat_interleave(self.units_per_item, output_size=len(scores_U))
        return best_of_segments(scores_U, window_U, items.first_W * self.units_per_item, self.budget(items.lengths_W))

    def _spread(self, kept_U: Tensor) -> Tensor:
        """Units -> tokens, [N, S]: an item takes all its tokens along, and tokens their item's separator."""
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
        """Give each kept token its place: windows one after another, each with its room.

        Two windows of two and one items with two tokens each, kept 10 11, 01, rooms 3 and 2:
        places 0 . 1 2, . 3; taken 3, 1; source 0 2 3 5 0
        """
        # How many are kept up to each token and up to each window's end: 1 1 2 3, 3 4 and 3, 4
        before_F, token_F = kept_NS.flatten().cumsum(0), items.index_NS.flatten()
        ends_W = before_F[(items.first_W + items.lengths_W) * self.tokens_per_item - 1]
        taken_W = ends_W.diff(prepend=ends_W.new_zeros(1))
        # A kept token's place: where its window's room begins (0, 3), and its rank within the window from there.
        window_F = items.window_N.repeat_interleave(self.tokens_per_item, output_size=len(before_F))
        slot_F = (capacity_W.cumsum(0) - capacity_W - ends_W + taken_W)[window_F] + before_F - 1
        # Turned round: what stands at each place. Dropped tokens all go to one place behind the last, which is cut off.
        source_O = torch.zeros(size + 1, dtype=torch.int64, device=kept_NS.device)
        numbers_F = torch.arange(len(before_F), device=kept_NS.device)
        source_O = source_O.scatter_(0, slot_F.where(kept_NS.flatten(), size), numbers_F)[:-1]
        # In a padded batch the encoder's axis has positions that are no token of an item: they stay at -1.
        slot_T = source_O.new_full((tokens,), -1).scatter_(0, token_F, slot_F.where(kept_NS.flatten(), -1))
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
        """True where a pool begins, [U]: each window's units in as many equal runs as its budget is."""
        unit_U, pools_U, units_U = self._runs(items)
        return unit_U * pools_U // units_U != (unit_U - 1) * pools_U // units_U

    def _runs(self, items: "ItemPositions") -> tuple[Tensor, Tensor, Tensor]:
        """Each unit's number within its window, its window's pools and its window's units, int64 [U] each."""
        units = len(items.window_N) * self.units_per_item
        window_U = items.window_N.repeat_interleave(self.units_per_item, output_size=units)
        unit_U = torch.arange(units, device=window_U.device) - (items.first_W * self.units_per_item)[window_U]
        return unit_U, self.budget(items.lengths_W)[window_U], (items.lengths_W * self.units_per_item)[window_U]

    def _pool(self, h_Td: Tensor, pruned: PrunedTokens, histories: Histories) -> Tensor:
        """Mean or maximum over the pool that begins at each token; of items level by level. A separator stays itself.

        A pool has ceil(1 / keep) units, give or take one; more only in histories so short that flooring the budget
        takes most of it: fewer than 2 / keep, where one pool is left.

        One window of five tokens, no separators, two pools -> runs 0 0 0 1 1: places 0 and 3, sizes 3 and 2
        """
        items, source_O = ItemPositions(histories, self.tokens_per_item), pruned.source_O
        # The token that begins each pool, counted without padding: its item, and which of the item's tokens it is.
        if histories.pad_to:
            first_W = items.first_W * self.tokens_per_item
            source_O = first_W[source_O // histories.pad_to] + source_O % histories.pad_to
        item_O, token_O = source_O // self.tokens_per_item, source_O % self.tokens_per_item
        # The size of each pool: from its first unit to where the next run begins; a separator is alone.
        unit_U, pools_U, units_U = self._runs(items)
        pool_U = unit_U * pools_U // units_U
        size_U = -((pool_U + 1) * -units_U // pools_U) - unit_U  # right for the unit that begins the pool
        first_O = item_O if self.whole_items else item_O * self.scored + token_O.clamp(max=self.scored - 1)
        size_O = size_U[first_O].where(token_O < self.scored, 1)
        # The units of each pool, with room for the largest; behind a smaller pool's own, its first unit again.
        step_G = torch.arange(self.largest_pool, device=source_O.device)
        real_OG = step_G < size_O[:, None]
        unit_OG = (first_O[:, None] + step_G * real_OG).clamp(max=len(unit_U) - 1)
        # Units -> tokens: the same level of each item, or the unit's own token.
        if self.whole_items:
            index_OG = items.index_NS[unit_OG, token_O[:, None]]
        else:
            index_OG = items.index_NS[unit_OG // self.scored, unit_OG % self.scored]
            separator_O1 = items.index_NS[item_O, token_O][:, None]
            index_OG = torch.where(token_O[:, None] < self.scored, index_OG, separator_O1)
        h_OGd = gather_unique(h_Td, index_OG.flatten(), _pool_slots(index_OG, real_OG, pruned)).view(
            *index_OG.shape, -1
        )
        if self.config.method == "max_pool":
            return h_OGd.masked_fill(~real_OG[..., None], -math.inf).amax(1)
        return (h_OGd * real_OG[..., None]).sum(1) / size_O[:, None]


def _pool_slots(index_OG: Tensor, real_OG: Tensor, pruned: PrunedTokens) -> Tensor:
    """Where in [O * G] each token of a pool is, int64 [T]; -1: in none."""
    dropped = len(pruned.slot_T)
    taken_O = torch.zeros(len(index_OG) + 1, dtype=torch.bool, device=index_OG.device).index_fill_(
        0, pruned.slot_T.where(pruned.slot_T >= 0, len(index_OG)), True
    )[:-1]
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
    """Where the items of a batch and their tokens are, all on the device."""

    def __init__(self, histories: Histories, tokens_per_item: int):
        self.lengths_W, count = histories.lengths_W, len(histories.items_N)
        self.first_W = self.lengths_W.cumsum(0) - self.lengths_W  # each window's first item
        self.window_N = torch.repeat_interleave(self.lengths_W, output_size=count)
        token_S = torch.arange(tokens_per_item, device=self.lengths_W.device)
        item_N = torch.arange(count, device=self.lengths_W.device)
        self.position_NS = (item_N - self.first_W[self.window_N])[:, None] * tokens_per_item + token_S
        start_N = (
            self.window_N * histories.pad_to if histories.pad_to else self.first_W[self.window_N] * tokens_per_item
        )
        self.index_NS = start_N[:, None] + self.position_NS


def best_of_segments(scores_U: Tensor, segment_U: Tensor, first_W: Tensor, budget_W: Tensor) -> Tensor:
    """True for the `budget_W` highest scores of each segment, bool [U]; of equal scores the earlier one is higher.

    Args:
        segment_U: int64, ascending: the segment of each score.
        first_W: int64, where each segment begins.
    """
    order_U = scores_U.argsort(descending=True, stable=True)
    order_U = order_U[segment_U[order_U].argsort(stable=True)]
    rank_U = torch.arange(len(scores_U), device=scores_U.device) - first_W[segment_U]
    return torch.empty_like(order_U, dtype=torch.bool).scatter_(0, order_U, rank_U < budget_W[segment_U])


def _random(items: ItemPositions, histories: Histories, h_Td: Tensor, training: bool) -> Tensor:
    """Uniform scores [T]; outside of training a hash of item and position, so that evaluations repeat."""
    if training:
        return torch.rand(len(h_Td), device=h_Td.device)
    scores_T = torch.zeros(len(h_Td), device=h_Td.device)
    mixed_NS = (histories.items_N[:, None] * 0x9E3779B1 + items.position_NS * 0x85EBCA6B + 1) & 0xFFFFFFFF
    for factor in (0x45D9F3B, 0x2C1B3C6D):
        mixed_NS = ((mixed_NS ^ (mixed_NS >> 16)) * factor) & 0xFFFFFFFF
    return scores_T.scatter_(0, items.index_NS.flatten(), (mixed_NS ^ (mixed_NS >> 16)).flatten() / 2**32)
