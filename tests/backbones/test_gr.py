"""GR over items equals HSTU's equations for one user at a time in float64; what is later changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from networks import SMALL, MakeBatch, MakeCausal, catalogue_of_items
from settings import some
from slow_hstu import slow_stack
from typed import present

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.gr import Gr
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.training.negatives import Negatives

LAYERS: dict[str, Any] = {"decoder_layers": 2, "relative_buckets": 8}


def slow_vectors(model: Gr) -> torch.Tensor:
    """The vectors of all items, float64 [I, d]."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    ids_Id = weights["ids.weight"] * weights["catalogue.trained_I"][:, None]
    vectors_Id: torch.Tensor = ids_Id + weights["catalogue.content_IC"] @ weights["content.weight"].T
    return vectors_Id


def slow_scores(model: Gr, states: torch.Tensor) -> torch.Tensor:
    """Logits of all items for each state, float64 [states, I]."""
    vectors_Id = slow_vectors(model)
    if model.config.temperature:
        vectors_Id = vectors_Id / vectors_Id.square().sum(1, keepdim=True).sqrt()
        states = states / states.square().sum(1, keepdim=True).sqrt() / model.config.temperature
    return states @ vectors_Id.T


def slow_logits(model: Gr, items: list[int], times: list[int]) -> torch.Tensor:
    """Logits of all items after each item of one history, float64 [items of the history, I]."""
    h = slow_vectors(model)[items] * model.config.d_model**0.5
    return slow_scores(model, slow_stack(model, h, times, times))


@pytest.fixture(params=[0.0, 0.05], ids=["dot products", "cosines"])
def model(request: pytest.FixtureRequest, make_causal: MakeCausal) -> Gr:
    made = make_causal("gr", temperature=request.param, **LAYERS)
    assert isinstance(made, Gr)
    return made.double()


def users_of(histories: Histories) -> list[tuple[list[int], list[int]]]:
    lengths = histories.lengths.tolist()
    times = torch.split(present(histories.times_N), lengths)
    return [(a.tolist(), b.tolist()) for a, b in zip(torch.split(histories.items_N, lengths), times, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("pad_to", [0, 12])
def test_it_equals_a_slow_one_that_takes_one_user_at_a_time(model: Gr, make_batch: MakeBatch, pad_to: int) -> None:
    histories, targets_W = make_batch(model, longest=12, pad_to=pad_to)
    (logits_WI,) = model(histories, targets_W)
    torch.testing.assert_close(logits_WI, torch.stack([slow_logits(model, *user)[-1] for user in users_of(histories)]))


@torch.no_grad()
def test_with_all_targets_it_predicts_what_follows_every_item(model: Gr, make_batch: MakeBatch) -> None:
    histories, targets_W = make_batch(model, longest=12, all_targets=True)
    (logits_NI,) = model(histories, targets_W)
    torch.testing.assert_close(logits_NI, torch.cat([slow_logits(model, *user) for user in users_of(histories)]))


@torch.no_grad()
def test_the_ranking_is_that_of_all_scores(model: Gr, make_batch: MakeBatch) -> None:
    histories, _ = make_batch(model)
    expected_WI = torch.stack([slow_logits(model, *user)[-1].log_softmax(0) for user in users_of(histories)])
    torch.testing.assert_close(score_catalogue(model, histories), histories.in_input_order(expected_WI).float())


@torch.no_grad()
def test_what_comes_later_changes_nothing(model: Gr) -> None:
    def logits(last: int, time: int) -> torch.Tensor:
        times_N = np.array([10, 500, 2_000, time])
        histories = Histories.pack(np.array([5, 9, 2, last]), np.array([0, 4]), times_N=times_N, all_targets=True)
        logits_NI: torch.Tensor = model(histories, torch.tensor([1]))[0]
        return logits_NI

    before, after = logits(7, 3_000), logits(31, 90_000_000)
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_cosines_lie_between_the_bounds_of_the_temperature(make_causal: MakeCausal, make_batch: MakeBatch) -> None:
    model = make_causal("gr", temperature=0.05)
    histories, targets_W = make_batch(model)
    (logits_WI,) = model(histories, targets_W)
    assert 10 < logits_WI.abs().max() <= 20 * (1 + 1e-6)


def test_draws_have_the_logits_of_the_catalogue_with_their_correction(model: Gr, make_batch: MakeBatch) -> None:
    histories, targets_W = make_batch(model)
    (logits_WI,) = model(histories, targets_W)
    weights_W = torch.ones(len(targets_W))
    batch = Batch(histories=histories, targets_W=targets_W, codes_WL=targets_W[:, None], weights_W=weights_W)
    drawn = Negatives(np.arange(60), 25, seed=3).sampled(batch, 0, 0, 0)
    sampled = present(drawn.sampled)
    (logits_WC,) = model(histories, targets_W, sampled)
    expected_WM = logits_WI[:, sampled.items_M] - sampled.log_expected_M
    same_WM = sampled.items_M == targets_W[:, None]
    torch.testing.assert_close(logits_WC[:, 1:][~same_WM], expected_WM[~same_WM])
    assert (logits_WC[:, 1:][same_WM] < -1e29).all()
    torch.testing.assert_close(logits_WC[:, 0], logits_WI.gather(1, targets_W[:, None])[:, 0])


def test_it_reads_items_alone() -> None:
    config = some(BackboneConfig, name="gr", **SMALL)
    with pytest.raises(ValueError, match="gr reads items by their index"):
        build_backbone(config, catalogue_of_items(30), vectors_only=True)


def slow_interactions(
    model: Gr, items: list[int], times: list[int], actions: list[list[int]], target: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of the next item after each interaction, and of its action given the item; one user, float64.

    The sequence is i1 a1 i2 a2 ... iN aN and the target. An item asks from the time of the interaction before it.
    """
    vectors_Id, rows = slow_vectors(model), present(model.action_tokens).rows.weight.double()
    tokens, asked, happened = [], [], []
    for position, item in enumerate([*items, target]):
        time = times[min(position, len(items) - 1)]
        tokens.append(vectors_Id[item])
        asked.append(times[max(position - 1, 0)])
        happened.append(time)
        if position < len(items):
            first, vector = 0, torch.zeros(model.config.d_model, dtype=torch.float64)
            for size, action in zip(model.action_sizes, actions[position], strict=True):
                vector = vector + rows[first + action]
                first += size
            tokens.append(vector)
            asked.append(time)
            happened.append(time)
    states = slow_stack(model, torch.stack(tokens) * model.config.d_model**0.5, asked, happened)
    head = present(model.action_tokens).head
    of_actions = states[2::2] @ head.weight.double().T + head.bias.double()
    return slow_scores(model, states[1::2]), list(of_actions.split(list(model.action_sizes), 1))


@torch.no_grad()
@pytest.mark.parametrize("pad_to", [0, 14])
@pytest.mark.parametrize("all_targets", [False, True])
def test_with_actions_it_equals_a_slow_one(
    make_causal: MakeCausal, make_batch: MakeBatch, pad_to: int, all_targets: bool
) -> None:
    model = make_causal("gr", temperature=0.05, actions=True, action_sizes=(3, 5), **LAYERS).double()
    assert isinstance(model, Gr)
    histories, targets_W = make_batch(model, longest=7, pad_to=pad_to, all_targets=all_targets)
    ours = model(histories, targets_W)
    actions = torch.split(present(histories.actions_NA), histories.lengths.tolist())
    for window, ((items, times), rows) in enumerate(zip(users_of(histories), actions, strict=True)):
        scores, of_actions = slow_interactions(model, items, times, rows.tolist(), int(targets_W[window]))
        start = int(histories.lengths[:window].sum())
        part = slice(start, start + len(items)) if all_targets else slice(window, window + 1)
        expected = [scores, *of_actions] if all_targets else [scores[-1:], *(x[-1:] for x in of_actions)]
        torch.testing.assert_close([x[part] for x in ours], expected)


def test_draws_leave_the_actions_as_they_are(make_causal: MakeCausal, make_batch: MakeBatch) -> None:
    model = make_causal("gr", actions=True, action_sizes=(4,), **LAYERS).double()
    histories, targets_W = make_batch(model)
    weights_W = torch.ones(len(targets_W))
    batch = Batch(histories=histories, targets_W=targets_W, codes_WL=targets_W[:, None], weights_W=weights_W)
    sampled = present(Negatives(np.arange(60), 25, seed=3).sampled(batch, 0, 0, 0).sampled)
    whole, drawn = model(histories, targets_W), model(histories, targets_W, sampled)
    torch.testing.assert_close(drawn[1], whole[1])
    torch.testing.assert_close(drawn[0][:, 0], whole[0].gather(1, targets_W[:, None])[:, 0])
