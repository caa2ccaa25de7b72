"""Recency: a learned vector for each position of an item, counted from the last item of a history."""

import numpy as np
import torch
from networks import MakeBatch, MakeModel
from typed import present

from pipeline.packing.histories import Histories


def test_each_item_gets_the_vector_of_its_age_and_far_ones_share_the_last(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    model = make_model(recency_items=4, seed=1)
    histories, _ = make_batch(model, count=7)
    plain = make_model(seed=1)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "recency.weight"})
    seen = []
    for each in (model, plain):
        next(iter(each.encoder)).attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        each.encode(histories)
    tokens = model.tokens_IS.shape[1]
    expected = torch.zeros_like(seen[0])
    row = 0
    for length in histories.lengths_W.tolist():
        for item in range(length):
            expected[row : row + tokens] = present(model.recency).weight[min(length - 1 - item, 3)]
            row += tokens
    torch.testing.assert_close(seen[0] - seen[1], expected)


def test_padding_and_packing_agree(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(recency_items=5)
    packed, targets_W = make_batch(model)
    padded, _ = make_batch(model, pad_to=9 * model.tokens_IS.shape[1])
    for ours, theirs in zip(model(packed, targets_W), model(padded, targets_W), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_window_does_not_depend_on_its_neighbours(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(recency_items=5)
    histories, targets_W = make_batch(model)
    together, start = model(histories, targets_W), 0
    for row, length in enumerate(histories.lengths_W.tolist()):
        items = histories.items_N[start : start + length].numpy()
        alone = model(Histories.pack(items, np.array([0, length])), targets_W[row : row + 1])
        for level, logits in enumerate(alone):
            torch.testing.assert_close(together[level][row : row + 1], logits)
        start += length
