"""`transformers`' T5 with the weights of ours: the oracle of the T5 backbone."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import T5Config, T5Model
from transformers.models.t5.modeling_t5 import T5Attention
from typed import gradient_of, total

from pipeline.backbones.blocks import DecoderBlock, EncoderBlock, FeedForward
from pipeline.backbones.t5 import T5

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.backbones.relative_bias import RelativeBias
    from pipeline.ops.linear import RMSNorm


class ManyLayers(nn.Module):
    """GRID's feed-forward, which replaces that of `transformers`."""

    def __init__(self, ff: FeedForward) -> None:
        super().__init__()
        self.layers = nn.ModuleList([ff.wi, *ff.hidden])
        self.wo, self.p = ff.wo, ff.dropout.p

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            h = F.dropout(F.relu(layer(h)), self.p, self.training)
        out: torch.Tensor = self.wo(h)
        return out


def as_transformers(model: T5) -> T5Model:
    """`transformers`' T5 holding our weights; gradients of the feed-forward and the norms flow to ours."""
    config = model.config
    oracle = T5Model(
        T5Config(
            vocab_size=model.tokens.num_embeddings,
            d_model=config.d_model,
            d_kv=config.d_head,
            d_ff=config.d_ff,
            num_layers=config.encoder_layers,
            num_decoder_layers=config.decoder_layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.relative_buckets,
            dropout_rate=config.dropout,
            relative_attention_max_distance=config.relative_max_distance,
            feed_forward_proj="relu",
            attn_implementation="eager",  # type: ignore[call-arg]  # of every configuration; the types lack it
        )
    ).eval()
    oracle.shared.weight = oracle.encoder.embed_tokens.weight = oracle.decoder.embed_tokens.weight = model.tokens.weight
    stacks: tuple[tuple[Any, Iterable[EncoderBlock | DecoderBlock], RelativeBias, RMSNorm], ...] = (
        (oracle.encoder, model.encoder, model.encoder_bias, model.encoder_norm),
        (oracle.decoder, model.decoder, model.decoder_bias, model.decoder_norm),
    )
    for stack, blocks, bias, norm in stacks:
        for theirs, ours in zip(stack.block, blocks, strict=True):
            first, feed_forward = theirs.layer[0], theirs.layer[-1]
            copy_weights(first.SelfAttention, *ours.attention.qkv.weight.chunk(3), ours.attention.o.weight)
            first.layer_norm.weight = ours.attention.norm.weight
            if isinstance(ours, DecoderBlock):
                copy_weights(
                    theirs.layer[1].EncDecAttention,
                    ours.cross.q.weight,
                    *ours.cross.kv.weight.chunk(2),
                    ours.cross.o.weight,
                )
                theirs.layer[1].layer_norm.weight = ours.cross.norm.weight
            feed_forward.DenseReluDense = ManyLayers(ours.ff)
            feed_forward.layer_norm.weight = ours.ff.norm.weight
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight = bias.weight
        stack.final_layer_norm.weight = norm.weight
    assert isinstance(oracle, T5Model)
    return oracle


@torch.no_grad()
def copy_weights(theirs: T5Attention, *weights: torch.Tensor) -> None:
    for name, weight in zip("qkvo", weights, strict=True):
        getattr(theirs, name).weight.copy_(weight)


def decoder_ids(model: T5, targets_W: torch.Tensor) -> torch.Tensor:
    """Start token, then the codes of all levels but the last."""
    widths = model.catalogue.widths
    rows = [
        [sum(widths) + 1] + [sum(widths[:level]) + code for level, code in enumerate(codes[:-1])]
        for codes in model.catalogue.codes_IL[targets_W].tolist()
    ]
    return torch.tensor(rows)


def sum_of_losses(model: T5, logits: list[torch.Tensor], targets_W: torch.Tensor) -> torch.Tensor:
    codes_WL = model.catalogue.codes_IL[targets_W]
    return total(
        F.cross_entropy(logits_WV, codes_WL[:, level], reduction="sum") for level, logits_WV in enumerate(logits)
    )


def gradients(model: T5, logits: list[torch.Tensor], targets_W: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum_of_losses(model, logits, targets_W).backward()
    return {name: gradient_of(parameter).clone() for name, parameter in model.named_parameters()}
