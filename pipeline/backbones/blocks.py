"""The layers that T5 is stacked of, over a packed axis of tokens; each has its norm and its residual.

Shape legend: T positions of all sequences, S key positions, d model width, H heads, D head width, R rows of incremental
decoding (windows x beams), J positions decoded so far.
"""

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.ops.attention import attend_to_ancestors, attend_to_windows, packed_attention
from pipeline.ops.dropout import Dropout, ReluDropout
from pipeline.ops.layout import Layout, Mass
from pipeline.ops.linear import RMSNorm, linear

KeysValues = tuple[Tensor, Tensor]  # of one layer, equal shapes; here both [S, H, D]
Past = tuple[KeysValues, ...]  # those of beams, one of each level


class SelfAttention(nn.Module):
    """Norm, attention within a sequence, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        inner = config.heads * config.d_head
        self.heads, self.p = config.heads, config.dropout
        self.norm = RMSNorm(config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor | None, *, causal: bool = False, mass: Mass | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The states, and with `mass` the attention mass [T] that each token receives."""
        mixed_THD, mass_T = packed_attention(
            (self._packed(h_Td),), layout, bias_HQK, causal=causal, mass=mass, dropout=self.p if self.training else 0.0
        )
        return linear(self.o, mixed_THD.flatten(1), self.dropout, residual_Td=h_Td), mass_T

    def project(self, h_Td: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [T, H, D] from one product."""
        return self._packed(h_Td).unbind(1)

    def _packed(self, h_Td: Tensor) -> Tensor:
        return linear(self.qkv, h_Td, norm=self.norm).unflatten(1, (3, self.heads, -1))

    def extend(self, h_Rd: Tensor, past: Past, rows_RJ: Tensor, bias_HJ: Tensor) -> tuple[Tensor, Past]:
        """One more position of each row; see `attend_to_ancestors`. No dropout."""
        q, k, v = self.project(h_Rd)
        past = (*past, (k, v))
        mixed_RHD = attend_to_ancestors(q, past, rows_RJ, bias_HJ)
        return linear(self.o, mixed_RHD.flatten(1), residual_Td=h_Rd), past


class CrossAttention(nn.Module):
    """Norm, attention to the history, without a position bias, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        inner = config.heads * config.d_head
        self.heads, self.p = config.heads, config.dropout
        self.norm = RMSNorm(config.d_model)
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.kv = nn.Linear(config.d_model, 2 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout)

    def packed(self, memory_Td: Tensor) -> Tensor:
        """Keys and values [S, 2, H, D]."""
        return linear(self.kv, memory_Td).unflatten(1, (2, self.heads, -1))

    def keys_values(self, memory_Td: Tensor) -> KeysValues:
        k, v = self.packed(memory_Td).unbind(1)
        return k, v

    def forward(self, h_Td: Tensor, memory_S2HD: Tensor, layout: Layout) -> Tensor:
        mixed_THD, _ = packed_attention(
            (self._queries(h_Td), memory_S2HD), layout, dropout=self.p if self.training else 0.0
        )
        return linear(self.o, mixed_THD.flatten(1), self.dropout, residual_Td=h_Td)

    def extend(self, h_Rd: Tensor, memory: KeysValues, encoder: Layout) -> Tensor:
        """As `forward` without dropout, for however many rows each window has."""
        mixed_RHD = attend_to_windows(self._queries(h_Rd), *memory, encoder)
        return linear(self.o, mixed_RHD.flatten(1), residual_Td=h_Rd)

    def _queries(self, h_Td: Tensor) -> Tensor:
        return linear(self.q, h_Td, norm=self.norm).unflatten(1, (self.heads, -1))


class FeedForward(nn.Module):
    """Norm, ReLU layers, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.hidden = cast(
            Iterable[nn.Linear],
            nn.ModuleList(nn.Linear(config.d_ff, config.d_ff, bias=False) for _ in range(config.ff_hidden_layers - 1)),
        )
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.relu, self.dropout = ReluDropout(config.dropout), Dropout(config.dropout)

    def forward(self, h_Td: Tensor) -> Tensor:
        x = linear(self.wi, h_Td, self.relu, norm=self.norm)
        for layer in self.hidden:
            x = linear(layer, x, self.relu)
        return linear(self.wo, x, self.dropout, residual_Td=h_Td)


class EncoderBlock(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.ff = FeedForward(config)

    def forward(
        self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor | None, mass: Mass | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As its attention."""
        h_Td, mass_T = self.attention(h_Td, layout, bias_HQK, mass=mass)
        return self.ff(h_Td), mass_T


class DecoderBlock(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.ff = FeedForward(config)

    def forward(self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor, memory_S2HD: Tensor, cross: Layout) -> Tensor:
        h_Td, _ = self.attention(h_Td, layout, bias_HQK, causal=True)
        return self.ff(self.cross(h_Td, memory_S2HD, cross))

    def extend(
        self, h_Rd: Tensor, past: Past, rows_RJ: Tensor, bias_HJ: Tensor, memory: KeysValues, encoder: Layout
    ) -> tuple[Tensor, Past]:
        h_Rd, past = self.attention.extend(h_Rd, past, rows_RJ, bias_HJ)
        return self.ff(self.cross.extend(h_Rd, memory, encoder)), past
