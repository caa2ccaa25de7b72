"""GR over items equals HSTU's equations for one user at a time in float64; what is later changes nothing."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import SMALL, MakeBatch, MakeCausal, catalogue_of_items
from settings import some
from typed import present

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.gr import Gr
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.training.negatives import Negatives

LAYERS: dict[str, Any] = {"decoder_layers": 2, "relative_buckets": 8}


def slow_logits(model: Gr, items: list[int], times: list[int]) -> torch.Tensor:
    """Logits of all items after each item of one history, float64 [items of the history, I], loop by loop."""
    config = model.config
    weights = {name: value.double() for name, value in model.state_dict().items()}
    vectors_Id = weights["ids.weight"] * weights["catalogue.trained_I"][:, None]
    vectors_Id = vectors_Id + weights["catalogue.content_IC"] @ weights["content.weight"].T
    h = vectors_Id[items] * config.d_model**0.5
    inner = config.heads * config.d_head
    for number in range(config.decoder_layers):
        block = f"blocks.{number}."
        mean, variance = h.mean(1, keepdim=True), h.var(1, keepdim=True, unbiased=False)
        x = (h - mean) / (variance + 1e-6).sqrt() @ weights[block + "uvqk.weight"].T
        u, v, q, k = (x * x.sigmoid()).split(inner, 1)
        rows = torch.zeros(len(items), inner, dtype=torch.float64)
        for head in range(config.heads):
            part = slice(head * config.d_head, (head + 1) * config.d_head)
            for i in range(len(items)):
                for j in range(i + 1):
                    bucket = int(math.log(max(times[i] - times[j], 1)) / 0.301)
                    bias = weights[block + "bias.weight"][distance_bucket(i - j), head]
                    bias = bias + weights[block + "time_bias"][bucket, head]
                    score = q[i, part] @ k[j, part] + bias
                    rows[i, part] += score * score.sigmoid() / (i + 1) * v[j, part]
        h = h + F.layer_norm(rows, [inner], eps=1e-6) * u @ weights[block + "o.weight"].T + weights[block + "o.bias"]
    states = F.layer_norm(h, [config.d_model], eps=1e-6)
    if config.temperature:
        lengths = vectors_Id.square().sum(1, keepdim=True).sqrt()
        vectors_Id = vectors_Id / lengths
        states = states / states.square().sum(1, keepdim=True).sqrt() / config.temperature
    logits: torch.Tensor = states @ vectors_Id.T
    return logits


def distance_bucket(ago: int) -> int:
    """T5's bucket for 8 buckets up to distance 24: the first four are exact."""
    return ago if ago < 4 else min(4 + int(math.log(ago / 4) / math.log(24 / 4) * 4), 7)


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
