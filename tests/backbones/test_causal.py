"""The causal backbones: packing changes nothing, nothing sees what comes later, and every way of asking agrees."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import MakeBatch, MakeCausal
from typed import gradient_of, present, total

from pipeline.backbones.causal import CausalBackbone
from pipeline.decoding.beam_search import beam_search
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.packing.histories import Histories

KINDS = [
    pytest.param({"name": "decoder"}, id="decoder"),
    pytest.param({"name": "decoder", "separators": False, "ff_hidden_layers": 2}, id="decoder without separators"),
    pytest.param({"name": "hstu"}, id="hstu"),
    pytest.param({"name": "hstu", "separators": False}, id="hstu without separators"),
    pytest.param({"name": "hstu", "time_bias": False}, id="hstu without times"),
    pytest.param({"name": "hstu", "hstu_attention": "softplus"}, id="hstu of IntRR's code"),
]
pytestmark = pytest.mark.parametrize("kind", KINDS)


def sum_of_losses(model: CausalBackbone[Any], logits: list[torch.Tensor], targets_W: torch.Tensor) -> torch.Tensor:
    codes_WL = model.catalogue.codes_IL[targets_W]
    return total(
        F.cross_entropy(logits_WV, codes_WL[:, level], reduction="sum") for level, logits_WV in enumerate(logits)
    )


def gradients(model: CausalBackbone[Any], loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: gradient_of(parameter).clone() for name, parameter in model.named_parameters()}


def same(ours: Any, expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def one_by_one(histories: Histories) -> Iterator[Histories]:
    """Yields each packed window as a batch of one window."""
    start = 0
    for length in histories.lengths_W.tolist():
        part = slice(start, start + length)
        yield Histories.pack(
            histories.items_N[part].numpy(), np.array([0, length]), times_N=present(histories.times_N)[part].numpy()
        )
        start += length


def test_packed_equals_one_window_at_a_time_in_outputs_and_gradients(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind).double()
    histories, targets_W = make_batch(model)
    logits = model(histories, targets_W)
    packed = gradients(model, sum_of_losses(model, logits, targets_W))
    alone: dict[str, torch.Tensor] = {}
    for row, one in enumerate(one_by_one(histories)):
        target = targets_W[row : row + 1]
        one_logits = model(one, target)
        for ours, expected in zip(logits, one_logits, strict=True):
            same(ours[row], expected[0])
        for name, gradient in gradients(model, sum_of_losses(model, one_logits, target)).items():
            alone[name] = alone.get(name, torch.zeros_like(gradient)) + gradient
    assert all(gradient.abs().max() > 0 for gradient in packed.values())
    for name, gradient in packed.items():
        same(gradient, alone[name])


def test_padded_equals_packed_in_outputs_and_gradients(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind).double()
    results = []
    for pad_to in (0, 9 * model.tokens_IS.shape[1] + 4):
        histories, targets_W = make_batch(model, pad_to=pad_to)
        logits = model(histories, targets_W)
        results.append((logits, gradients(model, sum_of_losses(model, logits, targets_W))))
    same(results[0], results[1])


def test_a_padded_batch_too_short_for_its_windows_is_refused(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind)
    longest = 9 * model.tokens_IS.shape[1]
    histories, targets_W = make_batch(model, pad_to=longest - 1)
    with pytest.raises(ValueError, match=rf"{longest} encoder positions does not fit .*{longest - 1}"):
        model(histories, targets_W)


@torch.no_grad()
def test_a_later_item_or_time_changes_nothing_before_it(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind).double()
    histories, targets_W = make_batch(model, count=1, longest=9, seed=4, all_targets=True)
    items = len(histories.items_N)
    before = model(histories, targets_W)
    for position in range(1, items):
        changed = Histories.pack(
            (histories.items_N + (torch.arange(items) >= position)).numpy() % model.catalogue.items,
            np.array([0, items]),
            times_N=(present(histories.times_N) + 10**8 * (torch.arange(items) >= position)).numpy(),
            all_targets=True,
        )
        after = model(changed, targets_W)
        codes_IL = model.catalogue.codes_IL
        same_L = codes_IL[histories.items_N[position]] == codes_IL[changed.items_N[position]]
        shared = int(same_L.int().cumprod(0).sum())
        for level, (old, new) in enumerate(zip(before, after, strict=True)):
            same(old[: position - 1], new[: position - 1])
            # The item at `position` is itself the target of the one before: level l sees its codes of levels before l.
            assert torch.equal(old[position - 1], new[position - 1]) == (level <= shared)
            assert not torch.equal(old[position], new[position])


@torch.no_grad()
def test_the_time_of_a_target_tells_nothing_of_it(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    """At inference the time of the next item is unknown."""
    model = make_causal(**kind).double()
    histories, targets_W = make_batch(model, count=1, seed=4, all_targets=True)
    items = len(histories.items_N)
    before = model(histories, targets_W)
    for position in range(1, items):
        later = present(histories.times_N) + 10**8 * (torch.arange(items) == position)
        after = model(
            Histories.pack(histories.items_N.numpy(), np.array([0, items]), times_N=later.numpy(), all_targets=True),
            targets_W,
        )
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[:position], new[:position])
            assert torch.equal(old[position], new[position]) != model.wants_times


@torch.no_grad()
def test_all_targets_of_a_window_equal_each_of_its_prefixes_with_one_target(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind).double()
    histories, targets_W = make_batch(model, all_targets=True)
    logits, row = model(histories, targets_W), 0
    for window, one in enumerate(one_by_one(histories)):
        sequence = [*one.items_N.tolist(), int(targets_W[window])]
        for length in range(1, len(sequence)):
            prefix = Histories.pack(
                np.array(sequence[:length]), np.array([0, length]), times_N=present(one.times_N)[:length].numpy()
            )
            for ours, expected in zip(logits, model(prefix, torch.tensor([sequence[length]])), strict=True):
                same(ours[row], expected[0])
            row += 1
    assert row == len(logits[0]) == len(histories.items_N)


@torch.no_grad()
def test_a_beam_as_wide_as_the_catalogue_equals_teacher_forcing_of_every_item(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(items=150, widths=(9, 8, 7, 3), **kind)
    histories, _ = make_batch(model, count=5)
    beams = beam_search(model, histories, beam=150)
    codes_IL = model.catalogue.codes_IL
    for row, one in enumerate(one_by_one(histories)):
        length = len(one.items_N)
        copies = Histories.pack(
            np.tile(one.items_N, 150), np.arange(151) * length, times_N=np.tile(present(one.times_N), 150)
        )
        expected_I = total(
            F.log_softmax(logits_IV, -1).gather(1, codes_IL[:, level : level + 1])[:, 0]
            for level, logits_IV in enumerate(model(copies, torch.arange(150)))
        )
        window = histories.order[row]
        same(beams.scores_WK[window], expected_I.sort(descending=True).values, 1e-5)
        assert (expected_I[beams.items_WK[window]].diff() < 1e-5).all()


@torch.no_grad()
def test_exact_scores_equal_those_of_the_beam_and_company_does_not_matter(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(items=150, widths=(9, 8, 7, 3), **kind)
    histories, _ = make_batch(model, count=7)
    beams, exact_WI = beam_search(model, histories, beam=20), score_catalogue(model, histories)
    same(beams.scores_WK, exact_WI.gather(1, beams.items_WK), 1e-5)
    for row, one in enumerate(one_by_one(histories)):
        assert torch.equal(beam_search(model, one, 20).items_WK[0], beams.items_WK[histories.order[row]])
    padded, _ = make_batch(model, count=7, pad_to=9 * model.tokens_IS.shape[1])
    assert torch.equal(beam_search(model, padded, 20).items_WK, beams.items_WK)


@torch.no_grad()
def test_beams_share_one_copy_of_their_history_and_states_never_change(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model, beams = make_causal(**kind), 5
    histories, _ = make_batch(model)
    begun = model.begin(histories)
    assert all(x.shape[0] == histories.windows for layer in begun.memory for x in layer)
    _, state = model.step(begun)
    beams_WK = torch.zeros(histories.windows, beams, dtype=torch.int64)
    codes_WK = torch.arange(beams).expand(histories.windows, -1)
    logits_WKV, after = model.step(state, beams_WK, codes_WK)
    assert after.memory is begun.memory
    again_WKV, _ = model.step(state, beams_WK, codes_WK)
    assert torch.equal(logits_WKV, again_WKV)


def test_reading_vectors_packed_equals_one_window_at_a_time_and_needs_no_tokens(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(vectors_only=True, **kind).double()
    assert not hasattr(model, "tokens")
    assert not hasattr(model, "heads")
    histories, _ = make_batch(model)
    vectors_Nd = torch.randn(len(histories.items_N), 16, dtype=torch.float64, requires_grad=True)
    states_Wd = model.read(vectors_Nd, histories)
    start = 0
    for row, one in enumerate(one_by_one(histories)):
        same(states_Wd[row], model.read(vectors_Nd[start : start + len(one.items_N)], one)[0])
        start += len(one.items_N)
    found = gradients(model, states_Wd.square().sum())
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    assert (gradient_of(vectors_Nd).abs().sum(1) > 0).all()


@torch.no_grad()
def test_the_states_behind_all_items_are_those_behind_each_prefix(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(vectors_only=True, **kind).double()
    histories, _ = make_batch(model, count=1, seed=4, all_targets=True)
    items = len(histories.items_N)
    vectors_Nd = torch.randn(items, 16, dtype=torch.float64)
    states_Nd = model.read(vectors_Nd, histories)
    for length in range(1, items + 1):
        prefix = Histories.pack(
            histories.items_N[:length].numpy(),
            np.array([0, length]),
            times_N=present(histories.times_N)[:length].numpy(),
        )
        same(states_Nd[length - 1], model.read(vectors_Nd[:length], prefix)[0])


def test_histories_without_times_are_refused_where_times_are_read(
    make_causal: MakeCausal, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind)
    histories = Histories.pack(np.arange(5), np.array([0, 2, 5]))
    if model.wants_times:
        with pytest.raises(ValueError, match="times_N"):
            model(histories, torch.arange(2))
    else:
        model(histories, torch.arange(2))


def test_every_token_of_the_history_is_kept(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind)
    histories, _ = make_batch(model)
    kept_NS = model.kept_tokens(histories)
    assert kept_NS.all()
    assert kept_NS.shape == (len(histories.items_N), model.tokens_IS.shape[1])


def test_dropout_acts_in_training_only(make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]) -> None:
    model = make_causal(dropout=0.3, **kind)
    histories, targets_W = make_batch(model)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat(model(histories, targets_W), 1)

    assert torch.equal(run(1), run(2))
    model.train()
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(1), run(1))


def test_runs_under_bfloat16_autocast_with_float32_logits(
    make_causal: MakeCausal, make_batch: MakeBatch, kind: dict[str, Any]
) -> None:
    model = make_causal(**kind)
    histories, targets_W = make_batch(model)
    expected = torch.cat(model(histories, targets_W), 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(histories, targets_W)
        loss = sum_of_losses(model, logits, targets_W)
        beams = beam_search(model, histories, 5)
    assert torch.cat(logits, 1).dtype == torch.float32
    assert (torch.cat(logits, 1) - expected).abs().max() < 0.1 * expected.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())
    assert beams.scores_WK.isfinite().all()
