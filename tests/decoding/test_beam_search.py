"""Beam search finds what scoring the whole catalogue finds, and never names an item that does not exist."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import MakeBatch, MakeModel, RandomWindows
from typed import total

from pipeline.backbones.t5 import T5
from pipeline.decoding import beam_search as beam_module
from pipeline.decoding.beam_search import beam_search, top_k
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories

LARGE: dict[str, Any] = {"items": 600, "widths": (14, 12, 10, 4)}  # most prefixes have few children, some have many


def brute_force(model: T5, items_N: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> torch.Tensor:
    """Scores [W, I]: each item is scored alone by teacher forcing, one window at a time."""
    rows = []
    for window in range(len(offsets) - 1):
        length, items = offsets[window + 1] - offsets[window], model.catalogue.items
        history = items_N[offsets[window] : offsets[window + 1]]
        copies = Histories.pack(np.tile(history, items), np.arange(items + 1) * length)
        logits = model(copies, torch.arange(items))
        rows.append(
            total(
                F.log_softmax(logits_IV, -1).gather(1, model.catalogue.codes_IL[:, level : level + 1])[:, 0]
                for level, logits_IV in enumerate(logits)
            )
        )
    return torch.stack(rows)


@torch.no_grad()
def test_exact_scores_equal_teacher_forcing_of_every_item(make_model: MakeModel, random_windows: RandomWindows) -> None:
    model = make_model(**LARGE)
    items_N, offsets, _ = random_windows(6, 600)
    scores_WI = score_catalogue(model, Histories.pack(items_N, offsets))
    torch.testing.assert_close(scores_WI, brute_force(model, items_N, offsets), rtol=1e-5, atol=1e-5)


def test_exact_scores_do_not_depend_on_how_the_catalogue_is_cut(
    make_model: MakeModel, random_windows: RandomWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(**LARGE)
    items_N, offsets, _ = random_windows(5, 600)
    histories = Histories.pack(items_N, offsets)
    whole = score_catalogue(model, histories)
    monkeypatch.setattr("pipeline.decoding.exhaustive.SCORING_BUDGET", 5 * 14 * 20)  # 20 items at once
    torch.testing.assert_close(score_catalogue(model, histories), whole, rtol=1e-5, atol=1e-5)


def test_a_beam_as_wide_as_the_catalogue_equals_brute_force_in_order_and_scores(
    make_model: MakeModel, random_windows: RandomWindows
) -> None:
    model = make_model(**LARGE)
    items_N, offsets, _ = random_windows(6, 600)
    histories = Histories.pack(items_N, offsets)
    beams = beam_search(model, histories, beam=600)
    expected = score_catalogue(model, histories).double()
    torch.testing.assert_close(beams.scores_WK.double(), expected.sort(1, descending=True).values, rtol=1e-5, atol=1e-5)
    for items_K, scores_I in zip(beams.items_WK, expected, strict=True):
        assert sorted(items_K.tolist()) == list(range(600))
        assert (scores_I[items_K].diff() < 1e-5).all()  # descending, up to rounding
    assert torch.equal(beams.codes_WKL, model.catalogue.codes_IL[beams.items_WK])


def test_a_beam_wider_than_the_catalogue_leaves_the_rest_empty(
    make_model: MakeModel, random_windows: RandomWindows
) -> None:
    model = make_model(items=13)
    items_N, offsets, _ = random_windows(5, 13)
    beams = beam_search(model, Histories.pack(items_N, offsets), beam=20)
    assert beams.items_WK.shape == beams.scores_WK.shape == (5, 20)
    assert beams.codes_WKL.shape == (5, 20, 4)
    assert [sorted(items_K[:13]) for items_K in beams.items_WK.tolist()] == [list(range(13))] * 5
    assert (beams.items_WK[:, 13:] == -1).all()
    assert (beams.scores_WK[:, 13:] == -torch.inf).all()
    assert beams.scores_WK[:, :13].isfinite().all()


@pytest.mark.parametrize("beam", [1, 3, 17, 50])
def test_a_constrained_beam_names_distinct_real_items_with_their_own_scores(
    make_model: MakeModel, random_windows: RandomWindows, beam: int
) -> None:
    model = make_model(**LARGE)
    items_N, offsets, _ = random_windows(20, 600)
    histories = Histories.pack(items_N, offsets)
    beams = beam_search(model, histories, beam)
    assert beams.items_WK.min() >= 0
    assert all(len(set(items_K)) == beam for items_K in beams.items_WK.tolist())
    assert torch.equal(model.catalogue.codes_IL[beams.items_WK], beams.codes_WKL)
    assert (beams.scores_WK.diff() <= 0).all()
    torch.testing.assert_close(
        beams.scores_WK, score_catalogue(model, histories).gather(1, beams.items_WK), rtol=1e-5, atol=1e-5
    )


def test_rows_do_not_depend_on_the_company_they_are_in(make_model: MakeModel, random_windows: RandomWindows) -> None:
    model = make_model(**LARGE)
    items_N, offsets, _ = random_windows(15, 600)
    together = beam_search(model, Histories.pack(items_N, offsets), 8)
    for window in range(15):
        alone = beam_search(model, Histories.pack(items_N, offsets[window : window + 2]), 8)
        assert torch.equal(alone.items_WK[0], together.items_WK[window])


def test_padded_histories_give_the_same_beams(make_model: MakeModel, random_windows: RandomWindows) -> None:
    model = make_model(**LARGE)
    items_N, offsets, _ = random_windows(15, 600)
    packed = beam_search(model, Histories.pack(items_N, offsets), 8)
    padded = beam_search(model, Histories.pack(items_N, offsets, pad_to=50), 8)
    assert torch.equal(packed.items_WK, padded.items_WK)


def test_a_free_beam_of_full_width_lists_all_combinations_and_marks_those_without_item(
    make_model: MakeModel, random_windows: RandomWindows
) -> None:
    model = make_model(items=20, widths=(4, 3, 3))
    items_N, offsets, _ = random_windows(5, 20)
    beams = beam_search(model, Histories.pack(items_N, offsets), beam=36, constrained=False)
    item_of = {tuple(codes): item for item, codes in enumerate(model.catalogue.codes_IL.tolist())}
    for codes_KL, items_K in zip(beams.codes_WKL.tolist(), beams.items_WK.tolist(), strict=True):
        assert sorted(map(tuple, codes_KL)) == list(itertools.product(range(4), range(3), range(3)))
        assert items_K == [item_of.get(tuple(codes), -1) for codes in codes_KL]
    assert beams.scores_WK.exp().sum(1).allclose(torch.ones(5), atol=1e-5)


def test_a_free_and_a_constrained_beam_of_full_width_rank_the_catalogue_alike(
    make_model: MakeModel, random_windows: RandomWindows
) -> None:
    model = make_model(items=20, widths=(4, 3, 3))
    items_N, offsets, _ = random_windows(5, 20)
    histories = Histories.pack(items_N, offsets)
    constrained, free = (beam_search(model, histories, 36, constrained=flag) for flag in (True, False))
    for window in range(5):
        assert free.items_WK[window][free.items_WK[window] >= 0].tolist() == constrained.items_WK[window, :20].tolist()


def test_equal_scores_come_in_the_order_of_the_semantic_ids(
    make_model: MakeModel, random_windows: RandomWindows
) -> None:
    model = make_model(**LARGE)
    with torch.no_grad():
        for head in model.heads:
            head.weight.zero_()  # every code equally likely
    items_N, offsets, _ = random_windows(4, 600)
    beams = beam_search(model, Histories.pack(items_N, offsets), 30)
    assert torch.equal(beams.items_WK, model.catalogue.item_of_leaf_I[:30].expand(4, -1))


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.sampled_from([-np.inf, -3.5, -1e-30, 0.0, 2.0, 7e30]), min_size=9, max_size=9),
        min_size=1,
        max_size=4,
    ),
    st.permutations(range(9)),
    st.integers(1, 12),
)
def test_top_k_equals_sorting_by_score_then_rank(scores: list[list[float]], rank: list[int], k: int) -> None:
    values_WK, indices_WK = top_k(torch.tensor(scores), torch.tensor(rank), k)
    for row, indices in zip(scores, indices_WK.tolist(), strict=True):
        assert indices == sorted(range(9), key=lambda index: (-row[index], rank[index]))[:k]
    assert torch.equal(values_WK, torch.tensor(scores).gather(1, indices_WK))


@pytest.mark.parametrize("decode", [lambda model, histories: beam_search(model, histories, 3), score_catalogue])
def test_a_model_in_training_mode_is_refused(
    make_model: MakeModel, make_batch: MakeBatch, decode: Callable[[Backbone, Histories], Any]
) -> None:
    model = make_model().train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        decode(model, make_batch(model)[0])


def test_the_work_of_a_step_depends_on_the_beam_and_not_on_the_catalogue(
    make_model: MakeModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten times the items and the same number of codes, a step has at most beam x codes candidates."""
    seen, plain = [], top_k

    def watched(scores_WC: torch.Tensor, rank_C: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(scores_WC.shape[1])
        return plain(scores_WC, rank_C, k)

    monkeypatch.setattr(beam_module, "top_k", watched)
    for items in (300, 3000):
        model = make_model(items=items, widths=(16, 16, 16, 2))
        beam_search(model, make_batch(model)[0], beam=5)
    assert max(seen) <= 5 * 16


def test_catalogues_with_a_single_item_or_level_decode(make_model: MakeModel, random_windows: RandomWindows) -> None:
    for items, widths in ((1, (3, 2)), (7, (9,))):
        model = make_model(items=items, widths=widths)
        items_N, offsets, _ = random_windows(3, items)
        beams = beam_search(model, Histories.pack(items_N, offsets), beam=2)
        assert beams.items_WK[:, 0].min() >= 0
