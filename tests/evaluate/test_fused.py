"""The fused ranking of the evaluation equals a slow one, user by user and item by item, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from settings import some
from torch import nn

from pipeline.artifacts import Splits
from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.decoding.exhaustive import score_catalogue, score_items
from pipeline.decoding.ranking import Ranker, generate_items
from pipeline.distributed import World
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.fused import FusedTargets, weigh
from pipeline.generator import Generator
from pipeline.packing.histories import Histories
from pipeline.views.counting import Counting, count_and_choose
from pipeline.views.fuser import Fuser
from pipeline.views.lists import MARGIN, SMOOTHING

WIDTHS, ITEMS, USERS, MAX_HISTORY, BEAM = (4, 4, 3), 30, 40, 5, 10
SLOPES = torch.tensor([[1.0, 0.7, 0.4], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0]])


def random_model(catalogue: Catalogue, name: str, seed: int) -> Generator:
    torch.manual_seed(seed)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "heads": 2, "d_head": 8, "d_ff": 16}
    model = build_backbone(replace(some(BackboneConfig, **sizes), name=name, content=False), catalogue)  # type: ignore[arg-type]
    for parameter in model.parameters():  # far from the flat start, so that histories and prefixes matter
        nn.init.normal_(parameter, std=0.4)
    import pandas as pd

    frame = pd.DataFrame({"item_id": np.arange(ITEMS), "raw_id": [f"item-{i}" for i in range(ITEMS)]})
    return Generator(model=model.eval(), catalogue=catalogue, items=frame, config={"max_history": MAX_HISTORY})


@pytest.fixture(scope="module")
def splits() -> Splits:
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 12, USERS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Splits(
        items_N=rng.integers(0, ITEMS, offsets[-1]).astype(np.int32),
        timestamps_N=np.arange(offsets[-1]),
        offsets=offsets,
        train_end=np.maximum(offsets[1:] - 2, offsets[:-1]),
        valid_target=np.where(lengths > 2, offsets[1:] - 2, -1),
        test_target=offsets[1:] - 1,
        summary={"max_history": MAX_HISTORY, "items": ITEMS},
    )


@pytest.fixture(scope="module")
def counted(splits: Splits) -> Counting:
    return count_and_choose(splits, window=3, neighbours=100)


@pytest.fixture(scope="module")
def fuser(counted: Counting) -> Fuser:
    rng = np.random.default_rng(0)
    codes = np.stack(np.unravel_index(rng.permutation(np.prod(WIDTHS))[:ITEMS], WIDTHS), 1)
    indices = Catalogue(np.arange(ITEMS)[:, None], (ITEMS,), digit=False)
    dense = random_model(indices, "sasrec", 1)
    return Fuser.of(random_model(Catalogue(codes, WIDTHS), "t5", 0), dense, counted)


def counting_values(counted: Counting, history: list[int]) -> np.ndarray:
    """log(share + smoothing) of every item, from one loop over the neighbours of each item of the history."""
    scores = np.zeros(ITEMS)
    pairs = counted.pairs
    for age, item in enumerate(reversed(history), start=1):
        for entry in range(pairs.starts[item], pairs.starts[item + 1]):
            weight = (pairs.after_E[entry] + pairs.before_E[entry]) / max(counted.counts_I[item], 1) ** 0.5
            scores[pairs.items_E[entry]] += weight / age
    total = scores.sum()
    values: np.ndarray = np.log((scores / total if total else scores) + SMOOTHING)
    return values


def slow_values(fuser: Fuser, counted: Counting, history: list[int], width: int) -> np.ndarray:
    """What each view gives every item of the catalogue, its floor where it does not list it: float64 [views, items]."""
    items, offsets = np.array(history), np.array([0, len(history)])
    found = generate_items(fuser.generator.model, items, offsets, beam=width)
    beam = {int(i): float(s) for i, s in zip(found.items_WK[0], found.scores_WK[0], strict=True) if i >= 0}
    generator = np.full(ITEMS, min(beam.values()) - MARGIN)
    generator[list(beam)] = list(beam.values())
    assert fuser.dense is not None
    dense = score_catalogue(fuser.dense.model, Histories.pack(items, offsets)).numpy()[0].astype(np.float64)
    return np.stack([generator, dense, counting_values(counted, history)])


def history_of(splits: Splits, user: int) -> list[int]:
    return [int(i) for i in splits.items_N[splits.offsets[user] : splits.offsets[user + 1] - 1]][-MAX_HISTORY:]


@pytest.mark.parametrize("drop_seen", [True, False])
def test_every_rank_equals_a_slow_ranking_of_the_whole_catalogue(
    drop_seen: bool, fuser: Fuser, splits: Splits, counted: Counting
) -> None:
    catalogue = fuser.generator.catalogue
    ranker = Ranker(catalogue, splits, "test", beam=BEAM, filter_seen=drop_seen, both_rules=True, batch_users=7)
    targets = FusedTargets(ranker, fuser, SLOPES, drop_seen=drop_seen, exact=True)
    assert targets.exact_U is not None
    own = ranker.rank(fuser.generator.model, listen=targets)
    fused = targets.ranking()
    assert fused.other is not None
    np.testing.assert_array_equal(own.ranks_U, ranker.rank(fuser.generator.model).ranks_U)
    for user in range(USERS):
        history = history_of(splits, user)
        if not history:
            assert fused.ranks_U[user] == targets.exact_U[user] == 0
            continue
        target = int(splits.items_N[splits.offsets[user + 1] - 1])
        values = slow_values(fuser, counted, history, ranker.width)
        packed = Histories.pack(np.array(history), np.array([0, len(history)]))
        exact = score_catalogue(fuser.generator.model, packed).numpy()[0].astype(np.float64)
        slopes = SLOPES.double().numpy()

        def rank(scores: np.ndarray, dropped: set[int], target: int = target) -> int:
            order = sorted(set(range(ITEMS)) - dropped, key=lambda item: (-scores[item], item))
            place = order.index(target) + 1 if target in order else 0
            return place if place <= BEAM else 0

        seen = set(history)
        assert fused.ranks_U[user] == rank(slopes[0] @ values, seen if drop_seen else set())
        assert fused.other.ranks_U[user] == rank(slopes[0] @ values, set() if drop_seen else seen)
        for view in range(3):
            expected = rank(slopes[view + 1] @ values, seen if drop_seen else set())
            assert targets.without_US[user, view] == expected
        # All items are within the first 50, so that the generator scores each of them exactly.
        exactly = slopes[0] @ np.stack([exact, *values[1:]])
        assert targets.exact_U[user] == rank(exactly, seen if drop_seen else set())
        order = sorted(set(range(ITEMS)) - (seen if drop_seen else set()), key=lambda item: -(slopes[0] @ values)[item])
        assert fused.top_UK[user].tolist() == order[:10]


def test_given_items_are_scored_as_in_the_whole_catalogue(fuser: Fuser, splits: Splits) -> None:
    rng = np.random.default_rng(1)
    index, offsets = splits.history_index(splits.targets("valid")[1])
    histories = Histories.pack(np.asarray(splits.items_N)[index], offsets)
    items_WK = torch.from_numpy(rng.integers(-1, ITEMS, (len(offsets) - 1, 6)))
    for model in (fuser.generator.model, fuser.dense.model):  # type: ignore[union-attr]
        everything_WI = score_catalogue(model, histories)
        expected_WK = everything_WI.gather(1, items_WK.clamp(min=0)).masked_fill(items_WK < 0, float("-inf"))
        torch.testing.assert_close(score_items(model, histories, items_WK), expected_WK)


@pytest.mark.parametrize("with_dense", [True, False])
def test_weights_come_from_validation_and_are_what_the_ranks_are_made_with(
    with_dense: bool, fuser: Fuser, splits: Splits, counted: Counting
) -> None:
    chosen = fuser if with_dense else Fuser.of(fuser.generator, None, counted)
    config = some(EvaluateConfig, beam=BEAM, batch_users=16)
    other = Fuser.of(chosen.generator, chosen.dense, counted, 0.25)
    fused, used, slopes_RS = weigh(config, [chosen, other], splits, World(), {}, drop_seen=True)
    assert fused is not None
    assert used.counting is not None
    assert fused.backward == used.counting.backward
    assert fused.views == chosen.views
    assert fused.trials == 2 * (73 if with_dense else 9)
    torch.testing.assert_close(slopes_RS[0], fused.slopes())
    for view in range(len(chosen.views)):
        assert slopes_RS[view + 1, view] == 0
    valid = replace(splits, test_target=splits.valid_target)
    ranker = Ranker(chosen.generator.catalogue, valid, "test", beam=BEAM, filter_seen=True, both_rules=True)
    targets = FusedTargets(ranker, used, slopes_RS, drop_seen=True, exact=False)
    ranker.rank(chosen.generator.model, listen=targets)
    assert targets.exact_U is None
    hits = targets.ranking().ranks_U[ranker.lengths_U > 0]
    assert fused.valid_recall_at_10 == pytest.approx(((hits > 0) & (hits <= 10)).mean())
