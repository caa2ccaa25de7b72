"""The chances of actions equal those of a forward pass over one history at a time."""

from typing import Literal

import numpy as np
import pytest
import torch
from networks import MakeCausal

from pipeline.artifacts import Splits
from pipeline.decoding.actions import label_chances, predicted_actions
from pipeline.packing.histories import Histories


def exposures_of(rng: np.random.Generator, lengths: list[int], items: int) -> Splits:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nobody = np.full(len(lengths), -1)
    return Splits(
        items_N=rng.integers(0, items, offsets[-1]).astype(np.int32),
        timestamps_N=np.sort(rng.integers(0, 10**6, offsets[-1])) * 1_000_000,
        offsets=offsets,
        train_end=offsets[1:],
        valid_target=nobody,
        test_target=nobody,
        summary={"max_history": 4, "items": items, "time_unit": "us"},
        actions_NA=np.stack([rng.integers(0, 2, offsets[-1]), rng.integers(0, 4, offsets[-1])], 1).astype(np.uint8),
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["decoder", "hstu", "sasrec", "gr"])
def test_chances_are_those_of_one_history_after_the_other(
    make_causal: MakeCausal, name: Literal["decoder", "hstu", "sasrec", "gr"]
) -> None:
    model = make_causal(name, actions=True, separators=False, action_sizes=(2, 4)).eval()
    sequences = exposures_of(np.random.default_rng(2), [3, 0, 9, 1, 6], model.catalogue.items)
    targets = np.array([17, 4, 1, 11, 2, 14])  # the first of a user, at 0, 3, 12 and 13, has nothing before it
    found = predicted_actions(model.train(), sequences, targets, batch=4)
    assert model.training
    model.eval()
    for row, target in enumerate(targets):
        start = max(sequences.offsets[np.searchsorted(sequences.offsets, target, side="right") - 1], target - 4)
        before = slice(start, target)
        histories = Histories.pack(
            sequences.items_N[before],
            np.array([0, target - start]),
            times_N=sequences.seconds(before),
            actions_NA=np.asarray(sequences.actions_NA)[before].astype(np.int64),
        )
        every = model(histories, torch.tensor([int(sequences.items_N[target])]))
        for column, logits in enumerate(every[-2:]):
            np.testing.assert_allclose(found[column][row], logits[0].log_softmax(0).numpy(), rtol=2e-5, atol=2e-6)


def test_the_chance_of_a_label_is_the_sum_over_its_values() -> None:
    chances = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    np.testing.assert_allclose(label_chances(np.log(chances).astype(np.float32), 1), [0.9, 0.5], rtol=1e-6)
    np.testing.assert_allclose(label_chances(np.log(chances).astype(np.float32), 2), [0.7, 0.25], rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["decoder", "gr"])
def test_logits_of_actions_alone_are_the_last_of_all_logits(
    make_causal: MakeCausal, name: Literal["decoder", "gr"]
) -> None:
    model = make_causal(name, actions=True, separators=False, action_sizes=(3,)).eval()
    histories = Histories.pack(
        np.array([5, 9, 2]), np.array([0, 2, 3]), times_N=np.array([1, 20, 40]), actions_NA=np.array([[2], [0], [1]])
    )
    targets = torch.tensor([1, 6])
    torch.testing.assert_close(model(histories, targets, actions_only=True), model(histories, targets)[-1:])
