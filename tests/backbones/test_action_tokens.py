"""An action is a token like a code: a network over pairs of item and action, one level longer, computes the same."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from networks import SMALL, MakeBatch, MakeCausal, RandomWindows
from settings import some
from typed import present

from pipeline.backbones import build_backbone, causal
from pipeline.backbones.causal import CausalBackbone
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import Search
from pipeline.packing.batch import Batch
from pipeline.packing.histories import Histories
from pipeline.strategies.base import action_loss

ACTIONS = 3


@pytest.fixture(params=["decoder", "hstu"])
def model(request: pytest.FixtureRequest, make_causal: MakeCausal) -> CausalBackbone[Any]:
    return make_causal(request.param, actions=True, separators=False, action_sizes=(ACTIONS,)).double()


def over_pairs(model: CausalBackbone[Any]) -> CausalBackbone[Any]:
    """The same network without actions over a catalogue of all pairs: item * ACTIONS + action."""
    codes = np.repeat(model.catalogue.codes_IL.numpy(), ACTIONS, 0)
    codes = np.concatenate([codes, np.tile(np.arange(ACTIONS), model.catalogue.items)[:, None]], 1)
    catalogue = Catalogue(codes, (*model.catalogue.widths, ACTIONS))
    made = build_backbone(some(BackboneConfig, name=model.config.name, separators=False, **SMALL), catalogue)
    assert isinstance(made, CausalBackbone)
    weights, action = dict(model.state_dict()), present(model.action_tokens)
    scale = model.input_scale / (made.input_scale or 1)
    weights["tokens.weight"] = torch.cat([weights["tokens.weight"][: model.separator], action.rows.weight * scale])
    weights[f"heads.{model.levels}.weight"] = action.head.weight
    made.load_state_dict({name: value for name, value in weights.items() if not name.startswith("action_tokens")})
    return made.double().eval()


def pairs_of(histories: Histories) -> np.ndarray:
    pairs_N: np.ndarray = (histories.items_N * ACTIONS + present(histories.actions_NA)[:, 0]).numpy()
    return pairs_N


@torch.no_grad()
@pytest.mark.parametrize("all_targets", [False, True])
def test_logits_are_those_of_a_network_over_pairs(
    model: CausalBackbone[Any], make_batch: MakeBatch, all_targets: bool
) -> None:
    present(model.action_tokens).head.bias.zero_()
    histories, targets_W = make_batch(model, all_targets=all_targets)
    offsets = np.concatenate([[0], np.cumsum(histories.lengths)])
    pairs = Histories.pack(
        pairs_of(histories),
        offsets,
        times_N=present(histories.times_N).numpy(),
        all_targets=all_targets,
    )
    expected = over_pairs(model)(pairs, targets_W * ACTIONS)  # which action a target has is not fed
    torch.testing.assert_close(model(histories, targets_W), expected)


@torch.no_grad()
@pytest.mark.parametrize("all_targets", [False, True])
def test_a_row_of_the_target_moves_the_chances_of_its_action_alone(
    model: CausalBackbone[Any], make_batch: MakeBatch, all_targets: bool
) -> None:
    rng = np.random.default_rng(7)
    trained_I = rng.random(60) < 0.7
    codes_IL = model.catalogue.codes_IL.numpy()
    catalogue = Catalogue(codes_IL, model.catalogue.widths, trained_I=trained_I, action_sizes=(ACTIONS,))
    made = build_backbone(replace(model.config, item_rows=True), catalogue)
    assert isinstance(made, CausalBackbone)
    made = made.double().eval()
    rows_Id = present(present(made.action_tokens).items)
    assert 0.01 < rows_Id.std() < 0.03
    made.load_state_dict({**made.state_dict(), **model.state_dict()})
    histories, targets_W = make_batch(model, all_targets=all_targets)
    without, found = model(histories, targets_W), made(histories, targets_W)
    for level in range(model.levels):
        assert torch.equal(found[level], without[level])
    # One user at a time: the item that follows each of the histories, or each of their items.
    expected, head_Vd, row = without[-1].clone(), present(model.action_tokens).head.weight, 0
    for items, target in zip(torch.split(histories.items_N, histories.lengths.tolist()), targets_W, strict=True):
        for item in [*items[1:].tolist(), int(target)] if all_targets else [int(target)]:
            if trained_I[item]:
                expected[row] += head_Vd @ rows_Id[item]
            row += 1
    assert row == len(expected)
    torch.testing.assert_close(found[-1], expected)
    (alone,) = made(histories, targets_W, actions_only=True)
    assert torch.equal(alone, found[-1])


@torch.no_grad()
def test_targets_are_looked_for_only_where_heads_read_their_rows(
    model: CausalBackbone[Any], make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looked(*_: object) -> None:
        raise AssertionError("no head reads the rows of items")

    histories, targets_W = make_batch(model, all_targets=True)
    expected = model(histories, targets_W)
    monkeypatch.setattr(causal, "_target_items", looked)
    assert all(map(torch.equal, model(histories, targets_W), expected))


@torch.no_grad()
def test_a_search_finds_what_all_logits_say(model: CausalBackbone[Any], random_windows: RandomWindows) -> None:
    items_N, offsets, _ = random_windows(8, 60)
    rng = np.random.default_rng(1)
    times_N, actions_NA = rng.integers(0, 10**6, len(items_N)), rng.integers(0, ACTIONS, (len(items_N), 1))
    beams = Search(model, 60)(items_N, offsets, times_N, None, actions_NA)
    histories = Histories.pack(items_N, offsets, times_N=times_N, actions_NA=actions_NA)
    scores = torch.zeros(8, 60, dtype=torch.float64)
    for item in range(60):
        logits = model(histories, torch.full((8,), item))[: model.levels]
        codes = model.catalogue.codes_IL[item].tolist()
        scores[:, item] = sum(x.log_softmax(1)[:, code] for x, code in zip(logits, codes, strict=True))
    scores = histories.in_input_order(scores)
    torch.testing.assert_close(beams.scores_WK.double(), scores.gather(1, beams.items_WK), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beams.scores_WK.double(), scores.sort(1, descending=True)[0], rtol=1e-5, atol=1e-5)
    other = Search(model, 60)(items_N, offsets, times_N, None, (actions_NA + 1) % ACTIONS)
    assert not torch.equal(beams.scores_WK, other.scores_WK)


@torch.no_grad()
@pytest.mark.parametrize("name", ["decoder", "hstu", "sasrec", "gr"])
def test_no_interaction_sees_a_later_one_and_no_action_its_own(
    make_causal: MakeCausal, name: Literal["decoder", "hstu", "sasrec", "gr"]
) -> None:
    model = make_causal(name, actions=True, separators=False, action_sizes=(2, 4)).double()

    def logits(actions: list[list[int]]) -> list[torch.Tensor]:
        histories = Histories.pack(
            np.array([5, 9, 2]),
            np.array([0, 3]),
            times_N=np.array([10, 500, 2_000]),
            actions_NA=np.array(actions),
            all_targets=True,
        )
        found: list[torch.Tensor] = model(histories, torch.tensor([1]))
        return found

    before, after = logits([[0, 1], [1, 3], [0, 0]]), logits([[0, 1], [1, 2], [0, 0]])
    for ours, theirs in zip(before, after, strict=True):  # row 0 predicts the second interaction with its action
        assert torch.equal(ours[0], theirs[0])
        assert not torch.equal(ours[1], theirs[1])


@torch.no_grad()
def test_unknown_actions_are_zeros(model: CausalBackbone[Any], make_batch: MakeBatch) -> None:
    histories, targets_W = make_batch(model)
    offsets = np.concatenate([[0], np.cumsum(histories.lengths)])
    items_N, times_N = histories.items_N.numpy(), present(histories.times_N).numpy()
    without = Histories.pack(items_N, offsets, times_N=times_N)
    zeros = Histories.pack(items_N, offsets, times_N=times_N, actions_NA=np.zeros((len(items_N), 1), np.uint8))
    torch.testing.assert_close(model(without, targets_W), model(zeros, targets_W), rtol=0, atol=0)


def test_the_loss_of_actions_is_their_cross_entropy_where_the_item_counts() -> None:
    rng = np.random.default_rng(5)
    histories = Histories.pack(rng.integers(0, 9, 4), np.array([0, 1, 2, 4]))
    weights_W = torch.tensor([1.0, 0.5, 0.0])
    batch = Batch(
        histories=histories,
        targets_W=torch.tensor([1, 2, 3]),
        codes_WL=torch.tensor([[1], [2], [3]]),
        weights_W=weights_W,
        actions_WA=torch.tensor([[0, 2], [1, 0], [1, 1]]),
    )
    logits = [torch.from_numpy(rng.normal(size=(3, size))) for size in (2, 3)]
    expected = 0.0
    for window, weight in enumerate(weights_W.tolist()):
        for column, scores in enumerate(logits):
            chances = scores[window].exp() / scores[window].exp().sum()
            expected -= weight * float(chances[present(batch.actions_WA)[window, column]].log())
    assert float(action_loss(logits, batch)) == pytest.approx(expected, rel=1e-5)
    skipped = replace(batch, counted_WL=torch.tensor([[False], [True], [True]]))
    first = replace(batch, weights_W=torch.tensor([1.0, 0.0, 0.0]))
    assert float(action_loss(logits, skipped)) == pytest.approx(expected - float(action_loss(logits, first)), rel=1e-5)
    assert action_loss(logits, replace(batch, actions_WA=None)) == 0
