"""The GPU kernel chooses what torch chooses. Runs where there is a GPU."""

import itertools

import numpy as np
import pytest
import torch

from pipeline.packing.pruning import Packed
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.pruner import Choice, Pruner

pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("the kernels need a GPU", allow_module_level=True)

CASES = (
    {},
    {"separators": "compete"},
    {"keep": 0.5, "score": "attention"},
    {"score": "l2", "keep": 0.9},
    {"base": "padded", "separators": "compete", "min_tokens": 1},
)
ITEMS = ((4, True), (4, False), (3, True))  # levels, separators


def batch(pruner: Pruner, pad_to: int, device: str) -> tuple[Packed, int]:
    """Windows of 1 to 30 items, with some places too many where nothing is padded; and how many tokens they are."""
    lengths_W = np.sort(np.concatenate([[1, 1, 2, 30], np.random.default_rng(0).integers(1, 31, 300)]))
    size = pruner.size(lengths_W, 30, pad_to) + (0 if pad_to else 5)
    packed = Packed(
        torch.arange(lengths_W.sum(), device=device), torch.from_numpy(lengths_W).to(device), (), 30, pad_to, size
    )
    return packed, len(lengths_W) * pad_to or int(lengths_W.sum()) * pruner.tokens_per_item


@pytest.mark.parametrize("pad_to", [0, 160])
@pytest.mark.parametrize(("options", "item"), itertools.product(CASES, ITEMS), ids=str)
def test_the_choice_is_that_of_torch_with_and_without_equal_scores(options, item, pad_to) -> None:
    if options.get("base") == "padded" and not pad_to:
        pytest.skip("there is no padded length")
    pruner = Pruner(RastpConfig(**options), *item, pad_to)
    for ties in (True, False):
        found: list[Choice] = []
        for device in ("cpu", "cuda"):
            packed, tokens = batch(pruner, pad_to, device)
            torch.manual_seed(0)
            h_Td, mass_T = torch.ones(tokens, 8), torch.randint(3, (tokens,)).float()
            if not ties:
                h_Td, mass_T = torch.randint(-9, 9, (tokens, 8)).float(), torch.rand(tokens)
            found.append(pruner._choice(h_Td.to(device), mass_T.to(device), packed, True))
        for name in ("source_O", "place_T", "position_O", "taken_W", "room_W", "kept_NS"):
            expected, own = (getattr(choice, name).cpu() for choice in found)
            assert torch.equal(own.to(expected.dtype), expected), name


def test_scores_that_are_no_numbers_do_not_pass_a_windows_room() -> None:
    pruner = Pruner(RastpConfig(), 4, True, 0)
    packed, tokens = batch(pruner, 0, "cuda")
    choice = pruner._choice(
        torch.full((tokens, 8), float("nan"), device="cuda"), torch.ones(tokens, device="cuda"), packed, True
    )
    assert (choice.taken_W <= choice.room_W).all()
    assert choice.place_T.max() < packed.size
