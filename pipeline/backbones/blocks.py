"""This module holds the layers of T5 over a packed axis of tokens; each layer has its norm and its residual.

A position bias comes in the form that `RelativeBias.for_layout` gives it for the layout: by query and key, or by
distance.

Shape legend: T positions of all sequences, d width of the model, H heads, D width of a head; local: S key positions of
all sequences (in cross-attention, the encoder's), R rows of a decoding step (windows x beams), J positions of a row so
far.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.ops.attention import attend_to_ancestors, attend_to_windows, packed_attention
from pipeline.ops.dropout import Dropout, ReluDropout
from pipeline.ops.layout import Layout, Mass
from pipeline.ops.linear import RMSNorm, feed_forward, linear

KeysValues = tuple[Tensor, Tensor]  # keys and values of one layer, equal shapes; in this module both [S, H, D]
Past = tuple[KeysValues, ...]  # keys and values of the beams of one layer: a pair for each level decoded so far

Module = TypeVar("Module", bound=nn.Module)


def module_list(modules: Iterable[Module]) -> Sequence[Module]:
    """Register `modules` as an `nn.ModuleList`, and retain the type that a ModuleList forgets."""
    return cast(Sequence[Module], nn.ModuleList(modules))


class SelfAttention(nn.Module):
    """Attend within a sequence: norm, attention, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        inner = config.heads * config.d_head
        self.heads = config.heads
        self.p = config.dropout
        self.norm = RMSNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, h_Td: Tensor, layout: Layout, bias: Tensor | None, *, causal: bool = False, mass: Mass | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the states [T, d], and with `mass` the attention mass [T] that each token receives."""
        mixed_THD, mass_T = packed_attention(
            (self._packed(h_Td),), layout, bias, causal=causal, mass=mass, dropout=self.p if self.training else 0.0
        )
        return linear(self.o, mixed_THD.flatten(1), self.dropout, residual_Td=h_Td), mass_T

    def project(self, h_Td: Tensor) -> tuple[Tensor, ...]:
        """Return queries, keys and values [T, H, D], computed as one product."""
        return self._packed(h_Td).unbind(1)

    def _packed(self, h_Td: Tensor) -> Tensor:
        """Return queries, keys and values as one tensor [T, 3, H, D]."""
        return torch.unflatten(linear(self.qkv, h_Td, norm=self.norm), 1, (3, self.heads, -1))

    def extend(self, h_Rd: Tensor, past: Past, rows_RJ: Tensor, bias_HJ: Tensor) -> tuple[Tensor, Past]:
        """Compute one more position of each row, without dropout, and add its keys and values to `past`.

        `attend_to_ancestors` says what `rows_RJ` and `bias_HJ` are.
        """
        q, k, v = self.project(h_Rd)
        past = (*past, (k, v))
        mixed_RHD = attend_to_ancestors(q, past, rows_RJ, bias_HJ)
        return linear(self.o, mixed_RHD.flatten(1), residual_Td=h_Rd), past


class CrossAttention(nn.Module):
    """Attend to the encoder's states: norm, attention without a position bias, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        inner = config.heads * config.d_head
        self.heads = config.heads
        self.p = config.dropout
        self.norm = RMSNorm(config.d_model)
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.kv = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def packed(self, memory_Sd: Tensor) -> Tensor:
        """Return the keys and values of the encoder's states as one tensor [S, 2, H, D]."""
        return torch.unflatten(linear(self.kv, memory_Sd), 1, (2, self.heads, -1))

    def keys_values(self, memory_Sd: Tensor) -> KeysValues:
        """Return the keys and the values of the encoder's states, [S, H, D] each."""
        k, v = self.packed(memory_Sd).unbind(1)
        return k, v

    def forward(self, h_Td: Tensor, memory_S2HD: Tensor, layout: Layout) -> Tensor:
        mixed_THD, _ = packed_attention(
            (self._queries(h_Td), memory_S2HD), layout, dropout=self.p if self.training else 0.0
        )
        return linear(self.o, mixed_THD.flatten(1), self.dropout, residual_Td=h_Td)

    def extend(self, h_Rd: Tensor, memory: KeysValues, encoder: Layout) -> Tensor:
        """Compute `forward` without dropout for one position of each row; every window has equally many rows."""
        mixed_RHD = attend_to_windows(self._queries(h_Rd), *memory, encoder)
        return linear(self.o, mixed_RHD.flatten(1), residual_Td=h_Rd)

    def _queries(self, h_Td: Tensor) -> Tensor:
        """Return the queries [T, H, D]."""
        return torch.unflatten(linear(self.q, h_Td, norm=self.norm), 1, (self.heads, -1))


class FeedForward(nn.Module):
    """Transform each token alone: norm, ReLU layers, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.hidden = module_list(
            nn.Linear(config.d_ff, config.d_ff, bias=False) for _ in range(config.ff_hidden_layers - 1)
        )
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.relu = ReluDropout(config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, h_Td: Tensor) -> Tensor:
        return feed_forward((self.wi, *self.hidden, self.wo), h_Td, self.relu, self.dropout, norm=self.norm)


class EncoderBlock(nn.Module):
    """One layer of the encoder: self-attention in both directions, then feed-forward."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.ff = FeedForward(config)

    def forward(
        self, h_Td: Tensor, layout: Layout, bias: Tensor | None, mass: Mass | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the states [T, d], and with `mass` the attention mass [T] that each token receives."""
        h_Td, mass_T = self.attention(h_Td, layout, bias, mass=mass)
        return self.ff(h_Td), mass_T


class DecoderBlock(nn.Module):
    """One layer of the decoder: causal self-attention, cross-attention to the encoder's states, feed-forward."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.ff = FeedForward(config)

    def forward(self, h_Td: Tensor, layout: Layout, bias: Tensor, memory_S2HD: Tensor, cross: Layout) -> Tensor:
        """Return the states [T, d].

        Args:
            memory_S2HD: keys and values of the encoder's states, as `CrossAttention.packed` gives them.
            cross: how the decoder's positions and the encoder's fall into windows.
        """
        h_Td, _ = self.attention(h_Td, layout, bias, causal=True)
        states_Td: Tensor = self.ff(self.cross(h_Td, memory_S2HD, cross))
        return states_Td

    def extend(
        self, h_Rd: Tensor, past: Past, rows_RJ: Tensor, bias_HJ: Tensor, memory: KeysValues, encoder: Layout
    ) -> tuple[Tensor, Past]:
        """Compute one more position of each row, as `SelfAttention.extend` and `CrossAttention.extend` do."""
        h_Rd, past = self.attention.extend(h_Rd, past, rows_RJ, bias_HJ)
        return self.ff(self.cross.extend(h_Rd, memory, encoder)), past
