"""The GPU kernel chooses what torch chooses. Runs where there is a GPU."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from settings import some

from pipeline.packing.histories import Histories
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.pruner import Pruner

if TYPE_CHECKING:
    from pipeline.packing.pruning import PrunedTokens

pytest.importorskip("triton", reason="no GPU: Triton is not installed")
pytestmark = pytest.mark.gpu

CASES: tuple[dict[str, Any], ...] = (
    {},
    {"separators": "compete"},
    {"keep": 0.5, "score": "attention"},
    {"score": "l2", "keep": 0.9},
    {"base": "padded", "separators": "compete", "min_tokens": 1},
)
ITEMS = ((4, True), (4, False), (3, True))  # levels, separators


def batch(pruner: Pruner, pad_to: int, device: str) -> tuple[Histories, int, int]:
    """(windows of 1 to 30 items, the capacity after pruning, the number of tokens). Without padding the capacity has a
    few slots too many."""
    lengths_W = np.sort(np.concatenate([[1, 1, 2, 30], np.random.default_rng(0).integers(1, 31, 300)]))
    size = pruner.size(lengths_W, 30, pad_to) + (0 if pad_to else 5)
    offsets = np.concatenate([[0], lengths_W.cumsum()])
    histories = Histories.pack(np.arange(lengths_W.sum()), offsets, device, longest=30, pad_to=pad_to)
    return histories, size, len(lengths_W) * pad_to or int(lengths_W.sum()) * pruner.tokens_per_item


@pytest.mark.parametrize(
    ("options", "item", "pad_to"),
    [
        (options, item, pad_to)
        for options, item, pad_to in itertools.product(CASES, ITEMS, (0, 160))
        if pad_to or options.get("base") != "padded"  # which needs a padded length
    ],
    ids=str,
)
def test_the_choice_is_that_of_torch_with_and_without_equal_scores(
    options: dict[str, Any], item: tuple[int, bool], pad_to: int
) -> None:
    pruner = Pruner(some(RastpConfig, **options), *item, pad_to)
    for ties in (True, False):
        found: list[PrunedTokens] = []
        for device in ("cpu", "cuda"):
            histories, size, tokens = batch(pruner, pad_to, device)
            torch.manual_seed(0)
            h_Td, mass_T = torch.ones(tokens, 8), torch.randint(3, (tokens,)).float()
            if not ties:
                h_Td, mass_T = torch.randint(-9, 9, (tokens, 8)).float(), torch.rand(tokens)
            found.append(pruner._choose(h_Td.to(device), mass_T.to(device), histories, size, True))
        for name in ("source_O", "slot_T", "position_O", "taken_W", "capacity_W", "kept_NS"):
            expected, own = (getattr(pruned, name).cpu() for pruned in found)
            assert torch.equal(own.to(expected.dtype), expected), name


def test_scores_that_are_no_numbers_do_not_pass_a_windows_capacity() -> None:
    pruner = Pruner(some(RastpConfig), 4, True, 0)
    histories, size, tokens = batch(pruner, 0, "cuda")
    pruned = pruner._choose(
        torch.full((tokens, 8), float("nan"), device="cuda"), torch.ones(tokens, device="cuda"), histories, size, True
    )
    assert (pruned.taken_W <= pruned.capacity_W).all()
    assert pruned.slot_T.max() < size
