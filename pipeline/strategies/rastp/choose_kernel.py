"""This Triton kernel makes rastp's choice of tokens: one program per window, one launch.

A window has a few hundred tokens at most, so a program ranks each token by comparing it with all others: it needs no
sort, and nothing leaves the chip between ranking and writing. `pruner.Pruner` does the same in torch (`_best`,
`_spread`, `_compact`) and is the oracle.

Shape legend: W windows, N items of all histories, T tokens on the axis before; local: S tokens of one item, E of them
that are scored, O slots of the axis after.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

ITEMS = 8  # items of one tile


@triton.jit
def _scores_of(scores_ptr, start, item, token, items, S: tl.constexpr, E: tl.constexpr):
    """Return True for each token of a tile that is scored, and the tokens' scores."""
    scored = (item < items) & (token < E)
    return scored, tl.load(scores_ptr + start + item * S + token, mask=scored, other=0.0)


@triton.jit
def choose_tokens_kernel(
    scores_ptr,
    first_ptr,
    lengths_ptr,
    budget_ptr,
    slots_ptr,
    source_ptr,
    slot_ptr,
    position_ptr,
    kept_ptr,
    taken_ptr,
    PAD_TO: tl.constexpr,
    S: tl.constexpr,
    E: tl.constexpr,
    FOLLOW: tl.constexpr,
    BI: tl.constexpr,
    BS: tl.constexpr,
):
    """Choose the tokens of one window that go on, and give them their slots; `choose_tokens` says what is written.

    Args:
        FOLLOW: a separator, token E of an item, goes on with any other token of the item.
        BI: items of a tile.
        BS: a power of two that holds S tokens.
    """
    w = tl.program_id(0).to(tl.int64)
    first = tl.load(first_ptr + w)
    items = tl.load(lengths_ptr + w)
    budget = tl.load(budget_ptr + w)
    # The window's slots are slot .. end - 1, its tokens begin at `start`.
    slot = tl.load(slots_ptr + w)
    end = tl.load(slots_ptr + w + 1)
    start = w * PAD_TO if PAD_TO > 0 else first * S
    # Item and token of each lane, S 3 and BS 4: items 0 0 0 0 1 1 1 1, tokens 0 1 2 3 0 1 2 3 (token 3 is none)
    i = tl.arange(0, BI * BS) // BS
    token = tl.arange(0, BI * BS) % BS
    for tile in range(0, items, BI):
        item = tile + i
        # The rank of a token is the number of the window's tokens above it: scores 3 5 3 -> ranks 1 0 2
        scored, score = _scores_of(scores_ptr, start, item, token, items, S, E)
        rank = tl.zeros([BI * BS], tl.int32)
        for other_tile in range(0, items, BI):
            other = other_tile + i
            counts, other_score = _scores_of(scores_ptr, start, other, token, items, S, E)
            earlier = (other * BS + token)[None, :] < (item * BS + token)[:, None]
            higher = (other_score[None, :] > score[:, None]) | ((other_score[None, :] == score[:, None]) & earlier)
            rank += tl.sum((higher & counts[None, :]).to(tl.int32), 1)
        kept = (scored & (rank < budget)).to(tl.int32)
        if FOLLOW:
            # Per item: kept 0 1 . -> 0 1 1, and kept 0 0 . -> 0 0 0
            by_item = tl.reshape(kept, [BI, BS])
            separator = tl.arange(0, BS)[None, :] == E
            kept = tl.reshape(tl.where(separator, tl.max(by_item, 1)[:, None], by_item), [BI * BS])
        # Kept tokens take the window's slots in order: slot 7, kept 0 1 1 0 1 -> . 7 8 . 9
        slot_of = slot + tl.cumsum(kept, 0) - 1
        real = (item < items) & (token < S)
        # A score that is not a number has no token above it, so that too many tokens may be kept: none passes `end`.
        stays = (kept > 0) & (slot_of < end)
        within = item * S + token
        tl.store(kept_ptr + first * S + within, stays.to(tl.int8), mask=real)
        tl.store(slot_ptr + start + within, tl.where(stays, slot_of, -1), mask=real)
        tl.store(source_ptr + slot_of, start + within, mask=stays)
        tl.store(position_ptr + slot_of, within, mask=stays)
        slot += tl.sum(kept, 0)
    tl.store(taken_ptr + w, tl.minimum(slot, end) - tl.load(slots_ptr + w))


def choose_tokens(
    scores_T: Tensor,
    lengths_W: Tensor,
    items: int,
    budget_W: Tensor,
    capacity_starts: Tensor,
    *,
    size: int,
    pad_to: int,
    tokens_per_item: int,
    scored: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Choose the `budget_W` tokens of highest score of each window, and the separators of their items.

    Of equal scores the earlier token is chosen.

    Args:
        items: N.
        capacity_starts: int64 [W + 1], the first slot of each window, and the end of all slots.
        size: O; slots that no token takes get the first token.
        pad_to: as `Histories.pad_to`.
        scored: E; the token after them, if there is one, is a separator that follows its item.

    Returns:
        source_O and slot_T as `ops.gather.gather_unique` wants them; position_O, int32: the position of each slot's
        token in its window before; kept_NS, bool; taken_W, int64: the slots that each window takes.
    """
    source_O = torch.zeros(size, dtype=torch.int64, device=scores_T.device)
    position_O = torch.zeros(size, dtype=torch.int32, device=scores_T.device)
    slot_T = torch.full((len(scores_T),), -1, dtype=torch.int64, device=scores_T.device)
    kept_NS = torch.empty(items, tokens_per_item, dtype=torch.bool, device=scores_T.device)
    taken_W = torch.empty_like(lengths_W)
    choose_tokens_kernel[(len(lengths_W),)](
        scores_T,
        lengths_W.cumsum(0) - lengths_W,
        lengths_W,
        budget_W,
        capacity_starts,
        source_O,
        slot_T,
        position_O,
        kept_NS.view(torch.int8),
        taken_W,
        PAD_TO=pad_to,
        S=tokens_per_item,
        E=scored,
        FOLLOW=scored < tokens_per_item,
        BI=ITEMS,
        BS=triton.next_power_of_2(tokens_per_item),
        num_warps=4,
    )
    return source_O, slot_T, position_O, kept_NS, taken_W
