"""How an epoch becomes optimizer steps and each process's batches."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import make_sids, make_splits
from typed import present

from pipeline.artifacts import Splits
from pipeline.distributed import World, deal
from pipeline.packing.batch import Selected
from pipeline.packing.kept import KeptItems
from pipeline.training import steps as batches
from pipeline.training.collate import Collator, _chosen_rows, common_shape, fitted_shape
from pipeline.training.loader import BatchLoader, prefetched, prefetched_on_stream
from pipeline.training.steps import Step, steps_of_epoch
from pipeline.training.windows import Epochs

TOKENS = 4  # positions of one item: three codes and a separator


@pytest.fixture(scope="module")
def splits() -> Splits:
    rng = np.random.default_rng(1)
    return make_splits(rng.integers(2, 15, size=50).tolist(), rng)


def windows_of(steps: list[Step]) -> list[tuple[int, int]]:
    return [pair for step in steps for pair in zip(step.windows.starts_W, step.windows.ends_W, strict=True)]


def slow_steps(epochs: Epochs, budget: int) -> list[int]:
    """Windows per step, filled one window at a time."""
    sizes, tokens = [0], 0
    for length in epochs.take(0, 0, len(epochs)).lengths_W:
        if tokens + length * TOKENS > budget:
            sizes, tokens = [*sizes, 0], 0
        sizes[-1], tokens = sizes[-1] + 1, tokens + length * TOKENS
    return sizes


@pytest.mark.parametrize("chunk", [3, 17, 10_000])
def test_steps_are_filled_in_the_order_of_the_epoch_whatever_the_chunk(
    splits: Splits, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_CHUNK", chunk)
    monkeypatch.setattr(batches, "CHUNK", 2 * chunk)
    epochs = Epochs(splits, "random_start", 0)
    steps = list(steps_of_epoch(epochs, 0, 0, 150, TOKENS))
    assert [len(step.windows) for step in steps] == slow_steps(epochs, 150)
    whole = epochs.take(0, 0, len(epochs))
    assert windows_of(steps) == list(zip(whole.starts_W, whole.ends_W, strict=True))
    assert steps[-1].last == len(epochs)


@settings(max_examples=20)
@given(st.integers(0, 20))
def test_a_resumed_epoch_goes_on_with_the_same_steps(done: int) -> None:
    rng = np.random.default_rng(1)
    epochs = Epochs(make_splits(rng.integers(2, 15, size=50).tolist(), rng), "random_start", 0)
    whole = list(steps_of_epoch(epochs, 3, 0, 150, TOKENS))
    done = min(done, len(whole) - 1)
    rest = list(steps_of_epoch(epochs, 3, whole[done].last, 150, TOKENS))
    assert [windows_of([step]) for step in rest] == [windows_of([step]) for step in whole[done + 1 :]]


@pytest.mark.parametrize("chunk", [5, 10_000])
def test_windows_of_weight_zero_are_in_no_step_and_cost_no_budget(
    splits: Splits, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_CHUNK", chunk)
    monkeypatch.setattr(batches, "CHUNK", 2 * chunk)

    def weigh(_: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        return np.where(ends_W % 3 == 0, 2.0, 0.0).astype(np.float32)

    epochs = Epochs(splits, "random_start", 0)
    steps = list(steps_of_epoch(epochs, 0, 0, 150, TOKENS, weigh))
    whole = epochs.take(0, 0, len(epochs))
    kept = whole[whole.ends_W % 3 == 0]
    assert windows_of(steps) == list(zip(kept.starts_W, kept.ends_W, strict=True))
    assert all((step.weights_W == 2.0).all() for step in steps)
    assert all(step.windows.lengths_W.sum() * TOKENS > 150 - 6 * TOKENS for step in steps[:-1])
    after = list(steps_of_epoch(epochs, 0, steps[1].last, 150, TOKENS, weigh))
    assert windows_of(after) == windows_of(steps[2:])


@pytest.mark.parametrize("chunk", [5, 10_000])
def test_steps_that_are_not_filled_up_are_those_of_full_without_the_windows_of_weight_zero(
    splits: Splits, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_CHUNK", chunk)
    monkeypatch.setattr(batches, "CHUNK", 2 * chunk)
    rng = np.random.default_rng(0)
    weights_M = np.where(rng.random(len(splits.items_N)) < 0.5, 0.0, rng.random(len(splits.items_N)) + 1)
    epochs = Epochs(splits, "random_start", 0)
    whole = list(steps_of_epoch(epochs, 0, 0, 150, TOKENS))
    weights_M[whole[2].windows.ends_W] = 0  # a step of which nothing is left

    def weigh(_: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        weights_W: np.ndarray = weights_M[ends_W].astype(np.float32)
        return weights_W

    steps = list(steps_of_epoch(epochs, 0, 0, 150, TOKENS, weigh, fill=False))
    expected = [
        [pair for pair in zip(step.windows.starts_W, step.windows.ends_W, strict=True) if weights_M[pair[1]]]
        for step in whole
    ]
    assert not expected[2]
    assert [windows_of([step]) for step in steps] == [windows for windows in expected if windows]
    assert [step.last for step in steps] == [
        step.last for step, windows in zip(whole, expected, strict=True) if windows
    ]
    assert all((step.weights_W == weigh(step.windows.starts_W, step.windows.ends_W)).all() for step in steps)
    for done in range(len(steps) - 1):
        rest = list(steps_of_epoch(epochs, 0, steps[done].last, 150, TOKENS, weigh, fill=False))
        assert windows_of(rest) == windows_of(steps[done + 1 :])


def test_batches_of_steps_that_are_not_filled_up_are_smaller_where_windows_are_skipped(splits: Splits) -> None:
    """On a GPU a batch is filled up to a shape; half of the windows need a shape of about half the windows."""
    codes_IL = torch.from_numpy(make_sids().codes_IL).long()
    epochs = Epochs(splits, "random_start", 0)
    options: dict[str, Any] = {"budget": 400, "input_tokens_per_item": TOKENS, "fill": True}
    loader = BatchLoader(epochs, Collator(splits.items_N, codes_IL, longest=splits.max_history), World(0, 1), **options)
    loader.fill_steps = False

    def widest(weigh: Any) -> int:
        return max(len(batch.weights_W) for _, parts in loader.rest_of_epoch(0, 0, weigh) for batch in parts)

    def half(_: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        return (ends_W % 2).astype(np.float32)

    whole = widest(lambda _, ends_W: np.ones(len(ends_W), np.float32))
    assert whole == widest(None)
    assert widest(half) < 0.75 * whole
    trained = [int(w) for _, parts in loader.rest_of_epoch(0, 0, half) for b in parts for w in b.weights_W]
    assert sum(trained) == int((epochs.take(0, 0, len(epochs)).ends_W % 2).sum())


@settings(max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 7))
def test_parts_hold_each_window_once_and_are_balanced(lengths: list[int], parts: int) -> None:
    lengths_W = np.array(lengths)
    dealt = deal(lengths_W, parts)
    assert Counter(np.concatenate(dealt).tolist()) == Counter(range(len(lengths)))
    sums = [lengths_W[rows].sum() for rows in dealt]
    assert max(sums) - min(sums) <= max(lengths)


@pytest.mark.parametrize(("size", "accumulate"), [(1, 1), (1, 3), (2, 1), (2, 2), (4, 5)])
def test_the_global_batch_is_the_same_for_any_number_of_processes_and_parts(
    splits: Splits, size: int, accumulate: int
) -> None:
    codes_IL = torch.from_numpy(make_sids().codes_IL).long()
    collator = Collator(splits.items_N, codes_IL, longest=splits.max_history)
    options: dict[str, Any] = {"budget": 150, "input_tokens_per_item": TOKENS, "accumulate": accumulate}
    epochs = Epochs(splits, "random_start", 0)
    loaders = [BatchLoader(epochs, collator, World(rank, size), **options) for rank in range(size)]
    for shares in zip(*(loader.rest_of_epoch(0, 0, None) for loader in loaders), strict=True):
        step = shares[0][0]
        dealt = [batch for _, parts in shares for batch in parts]
        assert len(dealt) == size * accumulate
        trained = [int(item) for batch in dealt for item in batch.targets_W[batch.weights_W > 0]]
        assert Counter(trained) == Counter(splits.items_N[step.windows.ends_W].tolist())


def test_a_batch_holds_histories_targets_and_codes_in_packed_order(splits: Splits) -> None:
    codes_IL = torch.from_numpy(make_sids().codes_IL).long()
    windows = Epochs(splits, "prefixes", 0).take(0, 0, 12)
    step = Step(0, 12, windows, np.arange(1, 13, dtype=np.float32))
    batch = Collator(splits.items_N, codes_IL)(step, np.arange(3, 12))
    position = 0
    for row, source in enumerate(batch.histories.order + 3):
        start, end = windows.starts_W[source], windows.ends_W[source]
        history = batch.histories.items_N[position : position + end - start]
        assert history.tolist() == splits.items_N[start:end].tolist()
        assert batch.targets_W[row] == splits.items_N[end]
        assert batch.codes_WL[row].tolist() == codes_IL[splits.items_N[end]].tolist()
        assert batch.weights_W[row] == source + 1
        position += end - start


def test_where_every_item_is_a_target_each_has_the_codes_of_the_one_after_it(splits: Splits) -> None:
    codes_IL = torch.from_numpy(make_sids().codes_IL).long()
    windows = Epochs(splits, "prefixes", 0).take(0, 0, 12)
    step = Step(0, 12, windows, np.arange(1, 13, dtype=np.float32))
    times_N = np.random.default_rng(0).integers(10**9, size=len(splits.items_N))
    batch = Collator(splits.items_N, codes_IL, times_M=times_N, all_targets=True)(step, np.arange(3, 12))
    positions = [
        (row, index) for row in batch.histories.order + 3 for index in range(windows.starts_W[row], windows.ends_W[row])
    ]
    assert batch.codes_WL.tolist() == [codes_IL[splits.items_N[index + 1]].tolist() for _, index in positions]
    assert batch.weights_W.tolist() == [row + 1 for row, _ in positions]
    assert batch.histories.times_N is not None
    assert batch.histories.times_N.tolist() == [times_N[index] for _, index in positions]
    assert batch.targets_W.tolist() == splits.items_N[windows.ends_W[batch.histories.order + 3]].tolist()


def test_preparing_ahead_changes_nothing_and_passes_errors_on() -> None:
    threads = []

    def numbers() -> Iterator[int]:
        for i in range(5):
            threads.append(threading.current_thread())
            yield i
        raise RuntimeError("the end")

    prepared = prefetched(numbers())
    assert [next(prepared) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the end"):
        next(prepared)
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("whole_items", [True, False])
def test_the_shape_of_an_epoch_holds_what_its_steps_leave_and_little_more(whole_items: bool, parts: int) -> None:
    """The sizes count tokens, decoder positions and items, also those of windows that fill a batch."""
    rng = np.random.default_rng(2)
    epochs = Epochs(make_splits(rng.integers(2, 15, size=900).tolist(), rng), "random_start", 0)
    steps = []
    for step in steps_of_epoch(epochs, 0, 0, 3000 * parts, TOKENS):
        count, items = len(step.windows), int(step.windows.lengths_W.sum())
        offsets = np.concatenate([[0], np.cumsum(step.windows.lengths_W)])
        kept = KeptItems.of(rng.random((items, TOKENS - 1)) < 0.6, offsets, whole_items, True)
        steps.append(
            replace(
                step,
                selected=Selected(
                    slots_W=np.zeros(count),
                    counted_WL=np.ones((count, TOKENS - 1), bool),
                    decoded_W=rng.integers(1, TOKENS, count),
                    stays_N=kept.stays_N,
                    tokens_NS=kept.tokens_NS,
                ),
            )
        )
    common = common_shape(steps[:-1], parts, epochs.max_history)
    shape = fitted_shape(common, steps[0], parts)
    assert shape.windows == common.windows
    assert (shape.items < common.items) == whole_items
    for step in steps[:-1]:  # the last is not full
        for rows in deal(step.windows.lengths_W, parts):
            chosen, filling = present(_chosen_rows(step, rows)), shape.windows - len(rows)
            used = {
                "positions": chosen.decoded_W,
                "items" if whole_items else "tokens": chosen.stays_N if whole_items else chosen.tokens_NS,
            }
            for name, array in used.items():
                assert 0.85 * getattr(shape, name) < present(array).sum() + filling <= 1.03 * getattr(shape, name)


@pytest.mark.parametrize("fill_steps", [True, False])
def test_the_windows_of_the_first_steps_may_be_drawn_ahead(
    fill_steps: bool, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch then draws none, and all batches are the same."""
    monkeypatch.setattr(batches, "FIRST_CHUNK", 64)
    monkeypatch.setattr(batches, "CHUNK", 256)
    codes_IL = torch.from_numpy(make_sids().codes_IL).long()
    collator = Collator(splits.items_N, codes_IL, longest=splits.max_history)

    def loader() -> BatchLoader:
        options: dict[str, Any] = {"budget": 150, "input_tokens_per_item": TOKENS, "fill": True}
        made = BatchLoader(Epochs(splits, "random_start", 0), collator, World(0, 1), **options)
        made.fill_steps = fill_steps
        return made

    def weigh(_: np.ndarray, ends_W: np.ndarray) -> np.ndarray:
        return (ends_W % 3 > 0).astype(np.float32)

    ahead, drawn = loader(), list[tuple[int, ...]]()
    take = ahead.epochs._take

    def draw(*slice_: int) -> Any:
        drawn.append(slice_)
        return take(*slice_)

    monkeypatch.setattr(ahead.epochs, "_take", draw)
    ahead.draw_ahead(3)
    before = len(drawn)
    assert before > 0
    rest = ahead.rest_of_epoch(3, 0, weigh)
    found = [next(rest)]
    assert len(drawn) == before
    found += rest
    expected = list(loader().rest_of_epoch(3, 0, weigh))
    assert [windows_of([step]) for step, _ in found] == [windows_of([step]) for step, _ in expected]
    for (_, (batch,)), (_, (other,)) in zip(found, expected, strict=True):
        assert torch.equal(batch.targets_W, other.targets_W)
        assert torch.equal(batch.weights_W, other.weights_W)


def test_all_epochs_of_a_process_prepare_their_batches_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new stream for each epoch would in time be the one that a step is being recorded on."""
    made = []

    class Stream:
        def __init__(self, _device: torch.device) -> None:
            made.append(self)

        def record_event(self) -> None: ...

        def wait_event(self, _event: None) -> None: ...

    device = torch.device("cuda", 99)  # no other test asks for its stream
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _side: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
    made.clear()
    steps: list[Any] = [(number, []) for number in range(3)]
    epochs = [list(prefetched_on_stream(iter(steps), device)) for _ in range(40)]
    assert epochs == [steps] * 40
    assert len(made) == 40 + 1  # `current_stream` made 40
