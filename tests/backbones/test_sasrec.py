"""The network over items equals a slow one, one user at a time; what is later changes nothing; ranking is exact."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import SMALL, MakeBatch, MakeCausal, RandomCodes, catalogue_of_items
from settings import some

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.sasrec import SasRec
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import beam_search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.decoding.ranking import generate_items
from pipeline.packing.histories import Histories


def slow_logits(model: SasRec, items: list[int]) -> torch.Tensor:
    """Logits of all items after each item of one history, float64 [items of the history, I], in plain steps."""
    config = model.config
    weights = {name: value.double() for name, value in model.state_dict().items()}
    vectors_Id = weights["ids.weight"].clone()
    for item in range(len(vectors_Id)):
        if not weights["catalogue.trained_I"][item]:
            vectors_Id[item] = 0
        if "catalogue.content_IC" in weights:
            vectors_Id[item] += weights["content.weight"] @ weights["catalogue.content_IC"][item]
    states = [vectors_Id[item] * config.d_model**0.5 for item in items]
    for number in range(config.decoder_layers):
        block = f"blocks.{number}."
        normed = [norm(state, weights[block + "attention.norm.weight"]) for state in states]
        qkv = [weights[block + "attention.qkv.weight"] @ state for state in normed]
        inner, mixed = config.heads * config.d_head, []
        for now in range(len(states)):
            heads = []
            for head in range(config.heads):
                part = slice(head * config.d_head, (head + 1) * config.d_head)
                query = qkv[now][:inner][part]
                keys = [qkv[then][inner : 2 * inner][part] for then in range(now + 1)]
                biases = [weights["bias.weight"][bucket(config, now - then), head] for then in range(now + 1)]
                scores = torch.stack([query @ key + bias for key, bias in zip(keys, biases, strict=True)])
                shares = scores.softmax(0)
                heads.append(sum(shares[then] * qkv[then][2 * inner :][part] for then in range(now + 1)))
            mixed.append(torch.cat(heads))
        states = [state + weights[block + "attention.o.weight"] @ mix for state, mix in zip(states, mixed, strict=True)]
        for now, state in enumerate(states):
            hidden = (weights[block + "ff.wi.weight"] @ norm(state, weights[block + "ff.norm.weight"])).clamp(min=0)
            states[now] = state + weights[block + "ff.wo.weight"] @ hidden
    return torch.stack([vectors_Id @ norm(state, weights["norm.0.weight"]) for state in states])


def norm(state: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return state / (state.square().mean() + 1e-6).sqrt() * gain


def bucket(config: BackboneConfig, ago: int) -> int:
    """T5's bucket of a key `ago` positions before the query."""
    exact = config.relative_buckets // 2
    if ago < exact:
        return ago
    far = math.log(ago / exact) / math.log(config.relative_max_distance / exact) * (config.relative_buckets - exact)
    return min(exact + int(far), config.relative_buckets - 1)


@pytest.fixture
def model(make_causal: MakeCausal) -> SasRec:
    made = make_causal("sasrec", decoder_layers=2, relative_buckets=8)
    assert isinstance(made, SasRec)
    return made.double()


def windows_of(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in torch.split(histories.items_N, histories.lengths.tolist())]


@pytest.mark.parametrize("pad_to", [0, 12])
def test_it_equals_a_slow_one_that_takes_one_user_at_a_time(model: SasRec, make_batch: MakeBatch, pad_to: int) -> None:
    histories, targets_W = make_batch(model, longest=12, pad_to=pad_to)
    (logits_WI,) = model(histories, targets_W)
    expected = torch.stack([slow_logits(model, items)[-1] for items in windows_of(histories)])
    torch.testing.assert_close(logits_WI, expected)


def test_with_all_targets_it_predicts_what_follows_every_item(model: SasRec, make_batch: MakeBatch) -> None:
    histories, targets_W = make_batch(model, longest=12, all_targets=True)
    (logits_NI,) = model(histories, targets_W)
    torch.testing.assert_close(logits_NI, torch.cat([slow_logits(model, items) for items in windows_of(histories)]))


def test_what_comes_later_changes_nothing(model: SasRec) -> None:
    before, after = (
        model(Histories.pack(np.array([5, 9, 2, last]), np.array([0, 4]), all_targets=True), torch.tensor([1]))[0]
        for last in (7, 31)
    )
    assert torch.equal(before[:3], after[:3])
    assert not torch.equal(before[3], after[3])


def test_the_ranking_is_that_of_all_scores(model: SasRec, make_batch: MakeBatch) -> None:
    histories, _ = make_batch(model)
    scores_WI = score_catalogue(model, histories)
    expected_WI = torch.stack([slow_logits(model, items)[-1].log_softmax(0) for items in windows_of(histories)])
    torch.testing.assert_close(scores_WI, histories.in_input_order(expected_WI).float())
    order_WK = scores_WI.argsort(dim=1, descending=True, stable=True)
    for constrained in (True, False):
        beams = beam_search(model, histories, 100, constrained)  # more than there are items
        assert torch.equal(beams.items_WK[:, :60], order_WK)
        assert (beams.items_WK[:, 60:] == -1).all()


def test_seen_items_leave_the_ranking(model: SasRec) -> None:
    items, offsets = np.array([3, 3, 8, 50, 1]), np.array([0, 3, 5])
    found = generate_items(model, items, offsets, beam=20, drop_seen=3).items_WK.tolist()
    for row, history in enumerate(([3, 3, 8], [50, 1])):
        best = slow_logits(model, history)[-1].argsort(descending=True).tolist()
        assert found[row] == [item for item in best if item not in history][:20]


def test_an_item_that_training_never_saw_has_its_content_alone(model: SasRec, make_batch: MakeBatch) -> None:
    histories, targets_W = make_batch(model)
    trained_I = model.catalogue.trained_I
    assert trained_I is not None
    assert not trained_I.all()
    model.train()
    (logits_WI,) = model(histories, targets_W)
    logits_WI.logsumexp(1).sum().backward()
    assert model.ids.weight.grad is not None
    assert torch.equal(model.ids.weight.grad.abs().sum(1) > 0, trained_I)
    with torch.no_grad():
        model.ids.weight[~trained_I] += 1
    assert torch.equal(model(histories, targets_W)[0], logits_WI)


def test_without_content_an_item_is_its_row() -> None:
    model = build_backbone(some(BackboneConfig, name="sasrec", **SMALL), catalogue_of_items(30, content=False)).eval()
    assert isinstance(model, SasRec)
    assert model.content is None
    histories = Histories.pack(np.array([5, 9, 2]), np.array([0, 3]))
    torch.testing.assert_close(model(histories, torch.tensor([1]))[0][0].double(), slow_logits(model, [5, 9, 2])[-1])


def test_a_new_network_looks_for_items_near_to_the_last_one() -> None:
    for width in (128, 256):
        config: dict[str, Any] = {**SMALL, "d_model": width}
        catalogue = catalogue_of_items(60)
        model = build_backbone(some(BackboneConfig, name="sasrec", **config), catalogue).eval()
        scores_WI = score_catalogue(model, Histories.pack(np.arange(60), np.arange(0, 61, 5)))
        assert scores_WI.argmax(1).tolist() == list(range(4, 60, 5))


def test_a_catalogue_of_one_item_is_ranked() -> None:
    catalogue = Catalogue(np.zeros((1, 1)), (1,), digit=False, trained_I=np.array([True]))
    model = build_backbone(some(BackboneConfig, name="sasrec", **SMALL), catalogue).eval()
    found = generate_items(model, np.array([0, 0]), np.array([0, 2]), beam=10)
    assert found.items_WK.tolist() == [[0] + [-2] * 9]
    assert found.scores_WK[0, 0] == 0
    assert (generate_items(model, np.array([0]), np.array([0, 1]), beam=10, drop_seen=1).items_WK == -2).all()


def test_it_reads_items_by_their_index_and_nothing_else(random_codes: RandomCodes) -> None:
    config = some(BackboneConfig, name="sasrec", **SMALL)
    for catalogue, vectors_only in (
        (catalogue_of_items(60), True),
        (Catalogue(random_codes(60, (7, 9)), (7, 9)), False),
    ):
        with pytest.raises(ValueError, match="sasrec reads items by their index"):
            build_backbone(config, catalogue, vectors_only)


@pytest.mark.parametrize(
    ("content_IC", "trained_I", "said"),
    [
        (np.zeros((3, 2), np.float32), None, r"float32 \(3, 2\) are not float32 \[4 items, width\]"),
        (np.zeros(4, np.float32), None, "content vectors"),
        (np.zeros((4, 0), np.float32), None, "content vectors"),
        (np.zeros((4, 2), np.int64), None, "content vectors of int64"),
        (None, np.ones(3, bool), "trained items"),
        (None, np.ones(4), "trained items of float64"),
    ],
)
def test_content_that_does_not_fit_the_items_is_refused(
    content_IC: np.ndarray | None, trained_I: np.ndarray | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Catalogue(np.arange(4)[:, None], (4,), digit=False, content_IC=content_IC, trained_I=trained_I)
