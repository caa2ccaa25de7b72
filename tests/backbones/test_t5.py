"""The T5 backbone: equal to `transformers`' T5, and packing changes nothing."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import MakeBatch, MakeModel, RandomCodes, RandomWindows
from settings import some
from torch import nn
from transformers.models.t5.modeling_t5 import T5Attention
from transformers_t5 import as_transformers, decoder_ids, gradients, sum_of_losses
from typed import gradient_of

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import BLOCK, bucket_table, relative_buckets
from pipeline.backbones.t5 import T5
from pipeline.catalogue import Catalogue
from pipeline.ops import attention, dropout
from pipeline.packing.histories import Histories

SHAPES = [
    pytest.param({"ff_hidden_layers": 1, "separators": False}, id="T5"),
    pytest.param({"ff_hidden_layers": 1, "separators": True}, id="T5 with separators"),
    pytest.param({"ff_hidden_layers": 2, "separators": True, "encoder_layers": 3, "decoder_layers": 1}, id="GRID"),
]


def encoder_ids(model: T5, histories: Histories) -> tuple[torch.Tensor, torch.Tensor]:
    """(token ids, mask) padded on the right, rows in packed order, built item by item."""
    widths, codes_IL = model.catalogue.widths, model.catalogue.codes_IL.tolist()
    rows, start = [], 0
    for length in histories.lengths_W.tolist():
        row = []
        for item in histories.items_N[start : start + length].tolist():
            row += [sum(widths[:level]) + code for level, code in enumerate(codes_IL[item])]
            row += [sum(widths)] if model.config.separators else []
        rows.append(torch.tensor(row))
        start += length
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


def assert_same(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
class TestEqualsTransformers:
    def test_encoder_and_decoder_outputs_and_logits(
        self, make_model: MakeModel, make_batch: MakeBatch, shape: dict[str, Any]
    ) -> None:
        model = make_model(**shape)
        histories, targets_W = make_batch(model)
        ids, mask = encoder_ids(model, histories)
        expected = as_transformers(model)(
            input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids(model, targets_W)
        )
        assert_same(model.encode(histories).states_Td, expected.encoder_last_hidden_state[mask.bool()])
        for level, logits_WV in enumerate(model(histories, targets_W)):
            assert_same(logits_WV, model.heads[level](expected.last_hidden_state[:, level]))

    def test_gradients_of_embeddings_biases_and_feed_forward(
        self, make_model: MakeModel, make_batch: MakeBatch, shape: dict[str, Any]
    ) -> None:
        model = make_model(**shape)
        histories, targets_W = make_batch(model)
        ours = gradients(model, model(histories, targets_W), targets_W)
        ids, mask = encoder_ids(model, histories)
        hidden = as_transformers(model)(
            input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids(model, targets_W)
        ).last_hidden_state
        logits = [head(hidden[:, level]) for level, head in enumerate(model.heads)]
        shared = {name for name in ours if not any(part in name for part in ("qkv", ".q.", ".kv.", ".o."))}
        model.zero_grad()
        sum_of_losses(model, logits, targets_W).backward()
        for name, parameter in model.named_parameters():
            if name in shared:  # attention weights are copies, split as `transformers` splits them
                assert_same(ours[name], gradient_of(parameter), 1e-4)

    def test_cached_decoding_over_all_levels(
        self, make_model: MakeModel, make_batch: MakeBatch, shape: dict[str, Any]
    ) -> None:
        model = make_model(**shape)
        histories, targets_W = make_batch(model)
        ids, mask = encoder_ids(model, histories)
        oracle, fed_WL = as_transformers(model), decoder_ids(model, targets_W)
        codes_WL = model.catalogue.codes_IL[targets_W]
        state, cache, memory = model.begin(histories), None, None
        beams_WK = torch.zeros(histories.windows, 1, dtype=torch.int64)
        for level in range(model.levels):
            expected = oracle(
                input_ids=ids,
                attention_mask=mask,
                encoder_outputs=memory,
                past_key_values=cache,
                decoder_input_ids=fed_WL[:, level : level + 1],
                use_cache=True,
            )
            cache, memory = expected.past_key_values, (expected.encoder_last_hidden_state,)
            previous = (beams_WK, codes_WL[:, level - 1 : level]) if level else ()
            logits_WKV, state = model.step(state, *previous)
            assert_same(logits_WKV, model.heads[level](expected.last_hidden_state))


def test_cached_beams_equal_teacher_forcing_of_each_beams_own_prefix(
    make_model: MakeModel, make_batch: MakeBatch
) -> None:
    """Beams change their order, branch and die; each beam attends to its own past alone."""
    model, beams = make_model(), 5
    histories, _ = make_batch(model)
    generator = torch.Generator().manual_seed(0)
    logits_WKV, state = model.step(model.begin(histories))
    prefixes_WKL = torch.empty(histories.windows, 1, 0, dtype=torch.int64)
    for level in range(1, model.levels):
        beams_WK = torch.randint(0, logits_WKV.shape[1], (histories.windows, beams), generator=generator)
        codes_WK = torch.randint(0, model.catalogue.widths[level - 1], (histories.windows, beams), generator=generator)
        logits_WKV, state = model.step(state, beams_WK, codes_WK)
        prefixes_WKL = torch.cat([prefixes_WKL.take_along_dim(beams_WK[..., None], 1), codes_WK[..., None]], -1)
        for beam in range(beams):
            assert_same(logits_WKV[:, beam], logits_after(model, histories, prefixes_WKL[:, beam]))


def logits_after(model: T5, histories: Histories, prefix_WL: torch.Tensor) -> torch.Tensor:
    """Teacher-forced logits of the level after a prefix, which need not be in the catalogue."""
    padded_WL = F.pad(prefix_WL, (0, model.levels - prefix_WL.shape[1]))
    tokens = model.tokens_IS
    model.tokens_IS = torch.cat(
        [tokens, F.pad(padded_WL + torch.tensor(model.first_token), (0, tokens.shape[1] - model.levels))]
    )
    logits: list[torch.Tensor] = model(histories, torch.arange(len(tokens), len(tokens) + len(prefix_WL)))
    model.tokens_IS = tokens
    return logits[prefix_WL.shape[1]]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 20), (8, 50), (4, 3)])
def test_buckets_equal_transformers(bidirectional: bool, buckets: int, max_distance: int) -> None:
    distances = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(distances, bidirectional, buckets, max_distance)
    assert torch.equal(relative_buckets(distances, bidirectional, buckets, max_distance), expected)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("max_distance", [3, BLOCK // 2 - 1, BLOCK // 2, 100_003])
def test_the_table_of_buckets_is_made_in_blocks_and_has_each_distance(bidirectional: bool, max_distance: int) -> None:
    distances = torch.arange(-max_distance, max_distance + 1)
    expected = relative_buckets(distances, bidirectional, 4, max_distance)
    assert torch.equal(bucket_table(bidirectional, 4, max_distance), expected)


def test_packed_equals_one_window_at_a_time(make_model: MakeModel, random_windows: RandomWindows) -> None:
    model = make_model()
    items_N, offsets, targets_W = random_windows(12, model.catalogue.items)
    histories = Histories.pack(items_N, offsets)
    logits = model(histories, torch.from_numpy(targets_W[histories.order]))
    packed = gradients(model, logits, torch.from_numpy(targets_W[histories.order]))
    alone: dict[str, torch.Tensor] = {}
    for window in range(12):
        one = Histories.pack(items_N[offsets[window] : offsets[window + 1]], np.array([0, np.diff(offsets)[window]]))
        target_1 = torch.from_numpy(targets_W[window : window + 1])
        one_logits = model(one, target_1)
        for logits_WV, expected_1V in zip(logits, one_logits, strict=True):
            assert_same(histories.in_input_order(logits_WV)[window], expected_1V[0])
        for name, gradient in gradients(model, one_logits, target_1).items():
            alone[name] = alone.get(name, torch.zeros_like(gradient)) + gradient
    for name, gradient in packed.items():
        assert_same(gradient, alone[name], 1e-4)


@pytest.mark.parametrize("pad_to", [45, 63], ids=["just enough", "more than enough"])
def test_padded_equals_packed_in_outputs_and_gradients(
    make_model: MakeModel, make_batch: MakeBatch, pad_to: int
) -> None:
    model = make_model()
    packed, targets_W = make_batch(model)
    padded, _ = make_batch(model, pad_to=pad_to)
    expected, ours = model(packed, targets_W), model(padded, targets_W)
    for ours_WV, expected_WV in zip(ours, expected, strict=True):
        assert_same(ours_WV, expected_WV)
    expected_gradients = gradients(model, expected, targets_W)
    for name, gradient in gradients(model, ours, targets_W).items():
        assert_same(gradient, expected_gradients[name], 1e-4)


def test_a_padded_batch_too_short_for_its_windows_is_refused(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    histories, targets_W = make_batch(model, pad_to=44)
    with pytest.raises(ValueError, match=r"45 encoder positions does not fit .*44"):
        model(histories, targets_W)


def test_a_level_sees_the_codes_before_it_and_none_after(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    histories, _ = make_batch(model, count=1)
    codes_IL = model.catalogue.codes_IL
    logits_of = [model(histories, torch.tensor([item])) for item in range(model.catalogue.items)]
    pairs = [(a, b) for a in range(60) for b in range(a)]
    for a, b in pairs:
        shared = int((codes_IL[a] == codes_IL[b]).int().cumprod(0).sum())
        for level in range(model.levels):
            same = torch.equal(logits_of[a][level], logits_of[b][level])
            assert same == (level <= shared), (a, b, level)


def test_dropout_acts_in_training_only(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(dropout=0.3)
    histories, targets_W = make_batch(model)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat(model(histories, targets_W), 1)

    assert torch.equal(run(1), run(2))
    model.train()
    assert not torch.equal(run(1), run(2))
    assert torch.equal(run(1), run(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_dropout_acts_where_t5_has_it(
    make_model: MakeModel, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
) -> None:
    """Both sides get a dropout that multiplies by 1 - p: equal outputs then mean that both drop at the same points."""
    model = make_model(dropout=0.25, **shape)
    histories, targets_W = make_batch(model)
    ids, mask = encoder_ids(model, histories)
    oracle = as_transformers(model)
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, training=True, *_: x * (1 - p) if training else x)
    for module in (dropout, attention):
        monkeypatch.setattr(module, "dropout_factors", lambda shape, p, like: like.new_full(shape, 1 - p))
    logits = model.train()(histories, targets_W)
    hidden = oracle.train()(
        input_ids=ids, attention_mask=mask, decoder_input_ids=decoder_ids(model, targets_W)
    ).last_hidden_state
    for level, logits_WV in enumerate(logits):
        assert_same(logits_WV, model.heads[level](hidden[:, level]))


def test_the_tiger_shape_has_13_million_parameters(random_codes: RandomCodes) -> None:
    tiger = some(
        BackboneConfig,
        encoder_layers=4,
        decoder_layers=4,
        d_model=128,
        heads=6,
        d_head=64,
        d_ff=1024,
        ff_hidden_layers=2,
        dropout=0.15,
    )
    widths = (256, 256, 256, 15)
    model = build_backbone(tiger, Catalogue(random_codes(300, widths), widths))
    one_attention, feed_forward = 4 * 128 * 6 * 64, 2 * 128 * 1024 + 1024 * 1024
    encoder = 4 * (one_attention + feed_forward + 2 * 128) + 128
    decoder = 4 * (2 * one_attention + feed_forward + 3 * 128) + 128
    tables = (783 + 2) * 128 + 783 * 128 + 2 * 32 * 6
    assert sum(parameter.numel() for parameter in model.parameters()) == encoder + decoder + tables
    assert 13.0e6 < encoder + decoder + tables < 13.2e6


def test_training_starts_near_the_loss_of_a_uniform_guess(make_batch: MakeBatch, random_codes: RandomCodes) -> None:
    widths = (32, 32, 32, 4)
    torch.manual_seed(0)
    model = build_backbone(some(BackboneConfig), Catalogue(random_codes(500, widths), widths)).eval()
    assert isinstance(model, T5)
    histories, targets_W = make_batch(model, count=200)
    loss = sum_of_losses(model, model(histories, targets_W), targets_W) / 200
    uniform = sum(np.log(width) for width in widths)
    assert uniform < loss < uniform + 4 * 0.7  # logits of unit variance cost half a nat each


def test_runs_under_bfloat16_autocast_with_float32_logits(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(dropout=0.1)
    histories, targets_W = make_batch(model)
    expected = torch.cat(model(histories, targets_W), 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat(model(histories, targets_W), 1)
        padded = torch.cat(model(make_batch(model, pad_to=45)[0], targets_W), 1)
        model.train()
        loss = sum_of_losses(model, model(histories, targets_W), targets_W)
    loss.backward()
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()
    assert (padded - expected).abs().max() < 0.05 * expected.abs().max()
    assert all(gradient_of(parameter).isfinite().all() for parameter in model.parameters())
