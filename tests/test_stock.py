"""The stock parts of benchmarks/stock.py compute what they are compared by: each window alone gives the same loss."""

import warnings

import numpy as np
import pytest
import torch
from settings import some

from benchmarks.stock_models import BLOCK, PackedStock, PaddedStock, block_masks, packed_inputs, padded_inputs
from pipeline.backbones.config import BackboneConfig
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories

WIDTHS, FIRST, ITEMS, WINDOWS, LONGEST = (7, 9, 5), [0, 7, 16, 22], 50, 24, 29
SMALL = some(BackboneConfig, encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_head=8, d_ff=16)
rng = np.random.default_rng(0)
codes_IL = torch.from_numpy(np.stack([rng.integers(0, width, ITEMS) for width in WIDTHS], 1))
tokens_IS = torch.cat([codes_IL + torch.tensor(FIRST[:3]), torch.full((ITEMS, 1), 21)], 1)
lengths_W = np.append(rng.integers(1, LONGEST + 1, WINDOWS - 1), LONGEST)  # about 1,400 tokens: several blocks
offsets = np.concatenate([[0], np.cumsum(lengths_W)])
items_N, targets_W = rng.integers(0, ITEMS, offsets[-1]), rng.integers(0, ITEMS, WINDOWS)


def batch(windows: range) -> Batch:
    begin, end = offsets[windows.start], offsets[windows.stop]
    histories = Histories.pack(items_N[begin:end], offsets[windows.start : windows.stop + 1] - begin)
    targets = torch.from_numpy(targets_W[windows.start : windows.stop][histories.order])
    return Batch(histories=histories, targets_W=targets, codes_WL=codes_IL[targets], weights_W=torch.ones(len(windows)))


@pytest.mark.long
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_flex_attention_sees_each_window_alone(bias: bool) -> None:
    torch.manual_seed(0)
    model = PackedStock(SMALL, WIDTHS, longest=LONGEST * 4, flex=True, bias=bias).eval()

    def loss(windows: range) -> float:
        inputs = packed_inputs(batch(windows), tokens_IS, FIRST, flex=True)
        with warnings.catch_warnings(action="ignore"):  # that it is slow without a compiler
            return float(model(inputs, block_masks(inputs)))

    alone = np.mean([loss(range(w, w + 1)) for w in range(WINDOWS)])
    assert loss(range(WINDOWS)) == pytest.approx(alone, abs=1e-5)


def test_the_masks_have_every_block_that_holds_a_pair() -> None:
    inputs = packed_inputs(batch(range(WINDOWS)), tokens_IS, FIRST, flex=True)
    for mask in block_masks(inputs):
        queries, keys = mask.seq_lengths
        seen = mask.mask_mod(0, 0, torch.arange(queries)[:, None], torch.arange(keys))
        needed = torch.zeros(mask.to_dense().shape[2:], dtype=torch.bool)
        query, key = seen.nonzero().T
        needed[query // BLOCK, key // BLOCK] = True
        assert torch.equal(mask.to_dense()[0, 0].bool(), needed)


@pytest.mark.long
@torch.no_grad()
def test_groups_of_transformers_t5_add_up() -> None:
    torch.manual_seed(0)
    model = PaddedStock(SMALL, WIDTHS).eval()
    inputs = packed_inputs(batch(range(WINDOWS)), tokens_IS, FIRST, flex=False)
    one, three = (sum(float(model(group)) for group in padded_inputs(inputs, count)) for count in (1, 3))
    assert one == pytest.approx(three, rel=1e-5)
