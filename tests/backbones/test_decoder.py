"""The decoder backbone equals `transformers`' T5 stack, run as a decoder without cross-attention."""

import pytest
import torch
import torch.nn.functional as F
from networks import MakeBatch, MakeCausal, RandomCodes
from settings import some
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack
from typed import gradient_of, total

from pipeline.backbones import build_backbone
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.decoder import Decoder, DecoderOnlyBlock
from pipeline.catalogue import Catalogue
from pipeline.ops import attention, dropout
from pipeline.packing.histories import Histories


def as_transformers(model: Decoder) -> T5Stack:
    """`transformers`' stack, which holds our weights."""
    config = model.config
    oracle = T5Stack(
        T5Config(
            vocab_size=model.tokens.num_embeddings,
            d_model=config.d_model,
            d_kv=config.d_head,
            d_ff=config.d_ff,
            num_layers=config.decoder_layers,
            num_heads=config.heads,
            is_decoder=True,
            use_cache=False,
            relative_attention_num_buckets=config.relative_buckets,
            dropout_rate=config.dropout,
            relative_attention_max_distance=config.relative_max_distance,
            feed_forward_proj="relu",
            attn_implementation="eager",  # type: ignore[call-arg]  # of every configuration; the types lack it
        )
    ).eval()
    oracle.embed_tokens = model.tokens
    for theirs, ours in zip(oracle.block, model.blocks, strict=True):
        assert isinstance(ours, DecoderOnlyBlock)
        attention_of, feed_forward = theirs.layer[0], theirs.layer[-1]
        for name, weight in zip("qkvo", (*ours.attention.qkv.weight.chunk(3), ours.attention.o.weight), strict=True):
            getattr(attention_of.SelfAttention, name).weight = nn.Parameter(weight.detach().clone())
        attention_of.layer_norm.weight, feed_forward.layer_norm.weight = ours.attention.norm.weight, ours.ff.norm.weight
        feed_forward.DenseReluDense.wi, feed_forward.DenseReluDense.wo = ours.ff.wi, ours.ff.wo
    oracle.block[0].layer[0].SelfAttention.relative_attention_bias.weight = model.bias.weight
    oracle.final_layer_norm.weight = next(model.norm.parameters())
    assert isinstance(oracle, T5Stack)
    return oracle


def fed_ids(model: Decoder, histories: Histories, targets_W: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """(token ids, padded on the right: the history's, then all codes of the target but the last; lengths of the
    histories), rows in packed order, built item by item."""
    widths, codes_IL = model.catalogue.widths, model.catalogue.codes_IL.tolist()

    def tokens_of(item: int) -> list[int]:
        return [sum(widths[:level]) + code for level, code in enumerate(codes_IL[item])]

    rows, lengths, start = [], [], 0
    for length, target in zip(histories.lengths_W.tolist(), targets_W.tolist(), strict=True):
        row = []
        for item in histories.items_N[start : start + length].tolist():
            row += tokens_of(item) + [sum(widths)] * model.config.separators
        lengths.append(len(row))
        rows.append(torch.tensor(row + tokens_of(target)[:-1]))
        start += length
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def expected_logits(model: Decoder, hidden: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    """Level l is read l tokens behind the last token of the history."""
    rows = torch.arange(len(lengths))
    return [head(hidden[rows, torch.tensor(lengths) - 1 + level]) for level, head in enumerate(model.heads)]


@pytest.mark.parametrize("separators", [True, False])
def test_logits_and_gradients_equal_transformers(
    make_causal: MakeCausal, make_batch: MakeBatch, separators: bool
) -> None:
    model = make_causal("decoder", separators=separators)
    assert isinstance(model, Decoder)
    histories, targets_W = make_batch(model)
    ids, lengths = fed_ids(model, histories, targets_W)
    ours = model(histories, targets_W)
    expected = expected_logits(model, as_transformers(model)(input_ids=ids).last_hidden_state, lengths)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    found = []
    for logits in (ours, expected):
        model.zero_grad()
        total(x.square().sum() for x in logits).backward()
        found.append(
            {
                name: gradient_of(parameter).clone()
                for name, parameter in model.named_parameters()
                if "qkv" not in name and ".o." not in name
            }
        )  # attention weights are copies, split as `transformers` splits them
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_dropout_acts_where_t5_has_it(
    make_causal: MakeCausal, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides get a dropout that multiplies by 1 - p: equal outputs then mean that both drop at the same points."""
    model = make_causal("decoder", dropout=0.25)
    assert isinstance(model, Decoder)
    histories, targets_W = make_batch(model)
    ids, lengths = fed_ids(model, histories, targets_W)
    oracle = as_transformers(model).train()
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, training=True, *_: x * (1 - p) if training else x)
    for module in (dropout, attention):
        monkeypatch.setattr(module, "dropout_factors", lambda shape, p, like: like.new_full(shape, 1 - p))
    expected = expected_logits(model, oracle(input_ids=ids).last_hidden_state, lengths)
    torch.testing.assert_close(model.train()(histories, targets_W), expected, rtol=1e-5, atol=1e-5)


def test_the_published_size_has_the_parameters_that_its_shapes_say(random_codes: RandomCodes) -> None:
    config = some(
        BackboneConfig,
        name="decoder",
        decoder_layers=4,
        d_model=256,
        heads=6,
        d_head=64,
        d_ff=1024,
        ff_hidden_layers=2,
        separators=False,
    )
    widths = (128, 128, 128, 15)
    model = build_backbone(config, Catalogue(random_codes(300, widths), widths))
    layer = 4 * 256 * 6 * 64 + 2 * 256 * 1024 + 1024 * 1024 + 2 * 256
    assert sum(parameter.numel() for parameter in model.parameters()) == 4 * layer + 256 + 2 * 399 * 256 + 32 * 6


def test_training_starts_near_the_loss_of_a_uniform_guess(make_batch: MakeBatch, random_codes: RandomCodes) -> None:
    widths = (32, 32, 32, 4)
    for name in ("decoder", "hstu"):
        torch.manual_seed(0)
        model = build_backbone(some(BackboneConfig, name=name), Catalogue(random_codes(500, widths), widths)).eval()
        histories, targets_W = make_batch(model, count=200)
        codes_WL = model.catalogue.codes_IL[targets_W]
        losses = [
            F.cross_entropy(logits_WV, codes_WL[:, level])
            for level, logits_WV in enumerate(model(histories, targets_W))
        ]
        uniform = sum(torch.tensor(width).log() for width in widths)
        assert uniform < sum(losses) < uniform + 4 * 0.7  # logits of unit variance cost half a nat each
