"""Tokens and decoder positions that are left out: the outputs are those of a model that masks them, at less work."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from networks import MakeModel
from settings import some
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers_t5 import as_transformers, decoder_ids, gradients
from typed import gradient_of, present

from pipeline.backbones.t5 import T5
from pipeline.packing.histories import Histories
from pipeline.packing.kept import KeptItems
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.strategy import PrunedNetwork


def ragged(
    model: T5, seed: int = 0, count: int = 14, longest: int = 6, share: float = 0.7
) -> tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.bool_]], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(items of each window, kept tokens of each, decoder positions, targets); some items lose all their tokens."""
    rng = np.random.default_rng(seed)
    per_item, lengths = model.tokens_IS.shape[1], rng.integers(1, longest + 1, count)
    items = [rng.integers(0, model.catalogue.items, length) for length in lengths]
    kept = [rng.random((length, per_item)) < share for length in lengths]
    for kept_NS in kept:
        kept_NS[rng.random(len(kept_NS)) < 0.2] = False
        kept_NS[-1, 0] = True
    return items, kept, rng.integers(1, model.levels + 1, count), rng.integers(0, model.catalogue.items, count)


def pack(
    items: list[npt.NDArray[np.int64]],
    kept: list[npt.NDArray[np.bool_]] | None = None,
    decoded_W: npt.NDArray[np.int64] | None = None,
    levels: int = 0,
    **options: Any,
) -> Histories:
    offsets = np.concatenate([[0], np.cumsum([len(item) for item in items])])
    return Histories.pack(
        np.concatenate(items),
        offsets,
        kept_NS=None if kept is None else np.concatenate(kept),
        decoded_W=decoded_W,
        levels=levels,
        **options,
    )


def masked_oracle(
    model: T5, items: list[npt.NDArray[np.int64]], kept: list[npt.NDArray[np.bool_]], targets_W: npt.NDArray[np.int64]
) -> Iterator[torch.Tensor]:
    """`transformers` on one window at a time, with what is left out masked: states [L, d] of the decoder."""
    oracle = as_transformers(model)
    for item_N, kept_NS, target in zip(items, kept, targets_W, strict=True):
        stays_N = kept_NS.any(1)
        item_N, kept_NS = item_N[stays_N], kept_NS[stays_N]
        embedded = model.tokens(model.tokens_IS[torch.from_numpy(item_N)])
        if model.recency is not None:
            embedded = embedded + model.recency(torch.arange(len(item_N) - 1, -1, -1).clamp(max=2))[:, None]
        yield oracle(
            inputs_embeds=embedded.flatten(0, 1)[None],
            attention_mask=torch.from_numpy(kept_NS).view(1, -1),
            decoder_input_ids=decoder_ids(model, torch.tensor([target])),
        ).last_hidden_state[0]


@pytest.mark.parametrize(
    "shape", [{}, {"separators": True}, {"recency_items": 3}], ids=["plain", "separators", "recency"]
)
def test_tokens_that_are_left_out_are_as_if_masked_and_the_others_keep_their_positions(
    make_model: MakeModel, shape: dict[str, Any]
) -> None:
    model = make_model(**shape)
    items, kept, decoded_W, targets_W = ragged(model)
    histories = pack(items, kept, decoded_W, model.levels)
    order = histories.order
    logits = model(histories, torch.from_numpy(targets_W[order]))
    expected = list(masked_oracle(model, items, kept, targets_W))
    for level, logits_WV in enumerate(logits):
        has_W = present(histories.decoder_positions).has_level(level)
        assert has_W.tolist() == (decoded_W[order] > level).tolist()
        for row in torch.nonzero(has_W)[:, 0].tolist():
            torch.testing.assert_close(
                logits_WV[row], model.heads[level](expected[order[row]][level]), rtol=1e-5, atol=1e-5
            )


def test_the_gradient_is_that_of_the_same_tokens_of_a_full_decoder(make_model: MakeModel) -> None:
    model = make_model(separators=True)
    items, kept, decoded_W, targets_W = ragged(model)
    short, full = pack(items, kept, decoded_W, model.levels), pack(items, kept)

    def loss(histories: Histories) -> torch.Tensor:
        """The loss of all tokens that both models compute, whatever the order of the windows."""
        codes_WL = model.catalogue.codes_IL[torch.from_numpy(targets_W[histories.order])]
        total = torch.zeros(())
        for level, logits in enumerate(model(histories, torch.from_numpy(targets_W[histories.order]))):
            losses_W = nn.functional.cross_entropy(logits, codes_WL[:, level], reduction="none")
            total = total + losses_W[torch.from_numpy(decoded_W[histories.order]) > level].sum()
        return total

    found = []
    for histories in (short, full):
        model.zero_grad()
        loss(histories).backward()
        found.append({name: gradient_of(parameter).clone() for name, parameter in model.named_parameters()})
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-4, atol=1e-5)


def test_an_item_without_tokens_leaves_as_if_it_had_never_been_there(make_model: MakeModel) -> None:
    model = make_model(recency_items=4)
    items, _, _, targets_W = ragged(model)
    stays = [np.arange(len(item)) % 2 == 0 for item in items]
    kept = [np.repeat(stay[:, None], model.tokens_IS.shape[1], 1) for stay in stays]
    dropped, never = pack(items, kept), pack([item[stay] for item, stay in zip(items, stays, strict=True)])
    for ours, expected in zip(
        *(model(histories, torch.from_numpy(targets_W[histories.order])) for histories in (dropped, never)), strict=True
    ):
        torch.testing.assert_close(ours, expected)


def test_leaving_nothing_out_changes_nothing(make_model: MakeModel) -> None:
    model = make_model(recency_items=4)
    items, kept, _, targets_W = ragged(model)
    everything = [np.ones_like(kept_NS) for kept_NS in kept]
    whole = pack(items, everything, np.full(len(items), model.levels), model.levels)
    found = [
        gradients(model, model(h, torch.from_numpy(targets_W[h.order])), torch.from_numpy(targets_W[h.order]))
        for h in (whole, pack(items))
    ]
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-5, atol=1e-6)


def test_what_is_left_out_is_not_computed(make_model: MakeModel) -> None:
    """Feed-forwards and projections fall with the tokens, attention faster; the heads with the decoder positions."""
    model = make_model().train()
    items, _, _, targets_W = ragged(model, count=30)

    def flops(kept: list[npt.NDArray[np.bool_]] | None, decoded_W: npt.NDArray[np.int64] | None) -> int:
        histories = pack(items, kept, decoded_W, model.levels)
        with FlopCounterMode(display=False) as counter:
            sum(logits.sum() for logits in model(histories, torch.from_numpy(targets_W[histories.order]))).backward()
        return int(counter.get_total_flops())

    def shares(share: float) -> list[npt.NDArray[np.bool_]]:
        rng = np.random.default_rng(1)
        kept = [rng.random((len(item), model.tokens_IS.shape[1])) < share for item in items]
        for kept_NS in kept:
            kept_NS[0, 0] = True
        return kept

    by_share = [flops(shares(share), None) for share in (1.0, 0.7, 0.4, 0.1)]
    assert by_share == sorted(by_share, reverse=True)
    assert by_share[-1] < 0.75 * by_share[0]
    by_prefix = [flops(None, np.full(len(items), length)) for length in (4, 3, 2, 1)]
    assert by_prefix == sorted(by_prefix, reverse=True)
    assert by_prefix[-1] < 0.9 * by_prefix[0]


@pytest.mark.parametrize("pad_to", [0, 30])
def test_prefixes_go_with_pruned_and_padded_encoders(make_model: MakeModel, pad_to: int) -> None:
    model = make_model(encoder_layers=2)
    model.pruner = None
    pruned = PrunedNetwork(some(RastpConfig, after_layer=1)).build(model.config, model.catalogue)
    pruned.load_state_dict(model.state_dict())
    items, _, decoded_W, targets_W = ragged(model)
    for network in (model, pruned.eval()):
        short, full = (pack(items, None, decoded, model.levels, pad_to=pad_to) for decoded in (decoded_W, None))
        expected = network(full, torch.from_numpy(targets_W[full.order]))
        for level, logits_WV in enumerate(network(short, torch.from_numpy(targets_W[short.order]))):
            has_W, same_W = (
                present(short.decoder_positions).has_level(level),
                full.row_of_W[torch.from_numpy(short.order)],
            )
            torch.testing.assert_close(logits_WV[has_W], expected[level][same_W][has_W], rtol=1e-5, atol=1e-5)


def test_a_window_must_keep_something(make_model: MakeModel) -> None:
    model = make_model()
    with pytest.raises(ValueError, match="at least one token"):
        pack([np.array([1, 2]), np.array([3])], [np.ones((2, model.levels), bool), np.zeros((1, model.levels), bool)])


@pytest.mark.parametrize("separators", [False, True])
def test_an_item_leaves_with_its_last_token_and_a_history_keeps_its_last_item(separators: bool) -> None:
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 5, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    skip_NL = rng.random((offsets[-1], 3)) < 0.8
    tokens, items = (KeptItems.of(skip_NL, offsets, whole, separators) for whole in (False, True))
    assert tokens.stays_N is None
    assert items.tokens_NS is None
    saved = 0
    for first, end in itertools.pairwise(offsets):
        rows = [[not skipped for skipped in row] for row in skip_NL[first:end].tolist()]
        if not any(map(any, rows)):
            rows[-1], saved = [True] * 3, saved + 1
        assert present(items.stays_N)[first:end].tolist() == [any(row) for row in rows]
        assert present(tokens.tokens_NS)[first:end].tolist() == [row + [any(row)] * separators for row in rows]
    assert saved > 5
