"""Ranks equal a slow user-by-user reference, whatever the batches, the decoding and the filter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import some
from torch import nn

from pipeline.artifacts import Splits
from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.decoding.ranking import DecodingMethod, histories_of, rank_targets
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories

WIDTHS = (3, 4, 3)
MAX_HISTORY = 4


def random_catalogue(rng: np.random.Generator, items: int = 16) -> Catalogue:
    """Distinct random SIDs; about half of all possible ones, so that unconstrained decoding meets invalid ones."""
    chosen = rng.permutation(np.prod(WIDTHS))[:items]
    return Catalogue(np.stack(np.unravel_index(chosen, WIDTHS), 1).astype(np.int32), WIDTHS)


def random_splits(rng: np.random.Generator, items: int = 16, users: int = 9) -> Splits:
    """Sequences of 1 to 9 items; the last one is the test target, also where nothing comes before it."""
    lengths = rng.integers(1, 10, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    test_target = np.where(rng.random(users) < 0.8, offsets[1:] - 1, -1)
    valid_target = np.where(lengths > 1, offsets[1:] - 2, -1)
    return Splits(
        items_N=rng.integers(0, items, offsets[-1]).astype(np.int32),
        timestamps_N=np.arange(offsets[-1]),
        offsets=offsets,
        train_end=np.maximum(offsets[1:] - 2, offsets[:-1]),
        valid_target=valid_target,
        test_target=test_target,
        summary={"max_history": MAX_HISTORY},
    )


def tiny_model(catalogue: Catalogue, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    config = some(BackboneConfig, encoder_layers=1, decoder_layers=1, d_model=16, heads=2, d_head=8, d_ff=16)
    model = build_backbone(config, catalogue)
    for parameter in model.parameters():  # far from the flat start, so that histories and prefixes matter
        nn.init.normal_(parameter, std=0.5)
    return model


def slow_history(splits: Splits, user: int, position: int) -> list[int]:
    sequence = list(splits.items_N[splits.offsets[user] : position])
    return [int(item) for item in sequence[-MAX_HISTORY:]]


def slow_scores(model: Backbone, catalogue: Catalogue, history: list[int]) -> np.ndarray:
    """Log-probability of every item after one history, from one forward pass per item."""
    scores = []
    for item in range(len(catalogue.codes_IL)):
        packed = Histories.pack(np.array(history), np.array([0, len(history)]), torch.device("cpu"))
        with torch.no_grad():
            logits = model.eval()(packed, torch.tensor([item]))
        codes = catalogue.codes_IL[item]
        scores.append(sum(float(level[0].log_softmax(-1)[code]) for level, code in zip(logits, codes, strict=True)))
    return np.array(scores)


@given(st.integers(0, 10_000))
@settings(max_examples=40)
def test_a_history_is_what_the_user_had_before_the_target_cut_to_the_most_recent(seed: int) -> None:
    splits = random_splits(np.random.default_rng(seed))
    for part in ("valid", "test"):
        users, positions = splits.targets(part)
        items, offsets = histories_of(splits, positions)
        for row, (user, position) in enumerate(zip(users, positions, strict=True)):
            assert items[offsets[row] : offsets[row + 1]].tolist() == slow_history(splits, user, position)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_exact_ranks_count_the_items_that_score_higher(filter_seen: bool) -> None:
    rng = np.random.default_rng(3)
    catalogue, splits = random_catalogue(rng), random_splits(rng)
    model = tiny_model(catalogue)
    found = rank_targets(model, catalogue, splits, "test", beam=8, decoding="exact", filter_seen=filter_seen)
    for user, position, rank, bucket_rank in zip(
        found.users_U, found.positions_U, found.ranks_U, found.bucket_ranks_U, strict=True
    ):
        target, history = int(splits.items_N[position]), slow_history(splits, user, position)
        if not history:
            assert (rank, bucket_rank) == (0, 0)
            continue
        scores = slow_scores(model, catalogue, history)
        order = [item for item in np.argsort(-scores) if not (filter_seen and item in history)][:8]
        buckets = [tuple(catalogue.codes_IL[item][:-1].tolist()) for item in order]
        bucket = tuple(catalogue.codes_IL[target][:-1].tolist())
        assert rank == (order.index(target) + 1 if target in order else 0)
        assert bucket_rank == (buckets.index(bucket) + 1 if bucket in buckets else 0)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_a_constrained_beam_as_wide_as_the_catalogue_ranks_exactly(filter_seen: bool) -> None:
    rng = np.random.default_rng(4)
    catalogue, splits = random_catalogue(rng), random_splits(rng, users=30)
    model = tiny_model(catalogue)
    wide, exact = (
        rank_targets(model, catalogue, splits, "test", beam=16, decoding=decoding, filter_seen=filter_seen)
        for decoding in ("constrained", "exact")
    )
    np.testing.assert_array_equal(wide.ranks_U, exact.ranks_U)
    np.testing.assert_array_equal(wide.bucket_ranks_U, exact.bucket_ranks_U)
    assert wide.invalid_share == exact.invalid_share == 0.0


def shared_catalogue(rng: np.random.Generator, items: int = 16) -> Catalogue:
    """SIDs without a deduplication digit; most of them belong to several items."""
    return Catalogue(rng.integers(0, (2, 2, 3), (items, 3)).astype(np.int32), WIDTHS, digit=False)


@pytest.mark.parametrize("decoding", ["constrained", "unconstrained", "exact"])
@pytest.mark.parametrize("beam", [5, 40])
def test_items_that_share_a_sid_are_ranked_by_item_id_and_found_exactly(decoding: DecodingMethod, beam: int) -> None:
    rng = np.random.default_rng(13)
    catalogue, splits = shared_catalogue(rng), random_splits(rng, users=30)
    assert catalogue.shares
    model, codes = tiny_model(catalogue), [tuple(own) for own in catalogue.codes_IL.tolist()]
    found = rank_targets(model, catalogue, splits, "test", beam=beam, decoding=decoding)
    assert beam == 5 or (found.ranks_U > 0).any()
    for user, position, rank, bucket_rank in zip(
        found.users_U, found.positions_U, found.ranks_U, found.bucket_ranks_U, strict=True
    ):
        history, target = slow_history(splits, user, position), int(splits.items_N[position])
        if not history or decoding == "unconstrained":  # there, combinations that name no item have ranks too
            assert (bucket_rank > 0) >= (rank > 0)
            assert bucket_rank <= rank or rank == 0
            continue
        scores = dict(zip(codes, slow_scores(model, catalogue, history), strict=True))
        order = sorted(range(16), key=lambda item: (-round(scores[codes[item]], 5), codes[item], item))[:beam]
        assert rank == (order.index(target) + 1 if target in order else 0)
        buckets = [codes[item] for item in order]
        assert bucket_rank == (buckets.index(codes[target]) + 1 if codes[target] in buckets else 0)


def test_seen_items_leave_a_shared_sid_one_by_one() -> None:
    rng = np.random.default_rng(14)
    catalogue, splits = shared_catalogue(rng), random_splits(rng, users=40)
    found = rank_targets(tiny_model(catalogue), catalogue, splits, "test", beam=16, filter_seen=True)
    for user, position, rank in zip(found.users_U, found.positions_U, found.ranks_U, strict=True):
        history = slow_history(splits, user, position)
        assert (rank > 0) == (bool(history) and int(splits.items_N[position]) not in history)


def test_batches_and_a_subset_of_users_change_nothing() -> None:
    rng = np.random.default_rng(5)
    catalogue, splits = random_catalogue(rng), random_splits(rng, users=20)
    model = tiny_model(catalogue)
    whole = rank_targets(model, catalogue, splits, "test", beam=6)
    small = rank_targets(model, catalogue, splits, "test", beam=6, batch_users=3)
    odd = rank_targets(model, catalogue, splits, "test", beam=6, users=np.arange(1, 20, 2))
    np.testing.assert_array_equal(whole.ranks_U, small.ranks_U)
    assert odd.users_U.tolist() == [user for user in whole.users_U if user % 2]
    np.testing.assert_array_equal(odd.ranks_U, whole.ranks_U[whole.users_U % 2 == 1])


def test_an_item_the_user_already_had_cannot_be_found_once_seen_items_are_dropped() -> None:
    rng = np.random.default_rng(6)
    catalogue, splits = random_catalogue(rng), random_splits(rng, users=60)
    found = rank_targets(tiny_model(catalogue), catalogue, splits, "test", beam=16, filter_seen=True)
    repeats = [
        splits.items_N[position] in slow_history(splits, user, position)
        for user, position in zip(found.users_U, found.positions_U, strict=True)
    ]
    assert any(repeats)
    assert found.ranks_U[repeats].tolist() == [0] * sum(repeats)
    others = (found.lengths_U > 0) & ~np.array(repeats)
    assert (found.ranks_U[others] > 0).all()


def test_unconstrained_outputs_that_name_no_item_are_counted_and_keep_their_rank() -> None:
    rng = np.random.default_rng(7)
    catalogue, splits = random_catalogue(rng), random_splits(rng, users=30)
    model = tiny_model(catalogue)
    possible = int(np.prod(WIDTHS))
    free = rank_targets(model, catalogue, splits, "test", beam=possible, decoding="unconstrained")
    bound = rank_targets(model, catalogue, splits, "test", beam=possible)
    assert free.invalid_share == pytest.approx(1 - 16 / possible)
    assert bound.invalid_share == 0.0
    assert (free.ranks_U >= bound.ranks_U).all()
    assert (free.ranks_U > bound.ranks_U).any()


def test_the_model_keeps_its_mode() -> None:
    rng = np.random.default_rng(8)
    catalogue, splits = random_catalogue(rng), random_splits(rng)
    model = tiny_model(catalogue).train()
    rank_targets(model, catalogue, splits, "valid", beam=4)
    assert model.training
