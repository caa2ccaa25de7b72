"""The layers that T5 is stacked of, over a packed axis of tokens; each has its norm and its residual.

Shape legend: T positions of all sequences, S key positions, d model width, H heads, D head width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.attention import Layout, Mass, attention, packed_attention
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.dropout import Dropout, ReluDropout

KeysValues = tuple[Tensor, Tensor]  # both [S, H, D]


class RMSNorm(nn.Module):
    """T5's layer norm: scaled by the root mean square, no mean, no bias."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h_Td: Tensor) -> Tensor:
        return F.rms_norm(h_Td, self.weight.shape, self.weight, 1e-6)


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

    def forward(self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor | None, *, causal: bool = False,
                mass: Mass | None = None) -> tuple[Tensor, Tensor | None]:
        """The states, and with `mass` the attention mass [T] that each token receives."""
        mixed_THD, mass_T = packed_attention((self._packed(h_Td),), layout, bias_HQK, causal=causal, mass=mass,
                                             dropout=self.p if self.training else 0.0)
        return h_Td + self.dropout(self.o(mixed_THD.flatten(1))), mass_T

    def project(self, h_Td: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [T, H, D] from one product."""
        return self._packed(h_Td).unbind(1)

    def _packed(self, h_Td: Tensor) -> Tensor:
        return self.qkv(self.norm(h_Td)).unflatten(1, (3, self.heads, -1))

    def extend(self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor,
               past: KeysValues | None) -> tuple[Tensor, KeysValues]:
        """One more position per sequence; `past` holds keys and values [sequences, positions, H, D]. No dropout."""
        q, k, v = self.project(h_Td)
        k, v = k[:, None], v[:, None]
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        mixed_THD, _ = attention(q, k.flatten(0, 1), v.flatten(0, 1), layout, bias_HQK)
        return h_Td + self.o(mixed_THD.flatten(1)), (k, v)


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
        return self.kv(memory_Td).unflatten(1, (2, self.heads, -1))

    def keys_values(self, memory_Td: Tensor) -> KeysValues:
        k, v = self.packed(memory_Td).unbind(1)
        return k, v

    def forward(self, h_Td: Tensor, memory: Sequence[Tensor], layout: Layout) -> Tensor:
        """`memory`: keys and values, together or apart."""
        q = self.q(self.norm(h_Td)).unflatten(1, (self.heads, -1))
        mixed_THD, _ = packed_attention((q, *memory), layout, dropout=self.p if self.training else 0.0)
        return h_Td + self.dropout(self.o(mixed_THD.flatten(1)))


class FeedForward(nn.Module):
    """Norm, ReLU layers, residual."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(config.d_ff, config.d_ff, bias=False)
                                    for _ in range(config.ff_hidden_layers - 1))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.relu, self.dropout = ReluDropout(config.dropout), Dropout(config.dropout)

    def forward(self, h_Td: Tensor) -> Tensor:
        x = self.relu(self.wi(self.norm(h_Td)))
        for layer in self.hidden:
            x = self.relu(layer(x))
        return h_Td + self.dropout(self.wo(x))


class EncoderBlock(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.ff = FeedForward(config)

    def forward(self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor | None,
                mass: Mass | None = None) -> tuple[Tensor, Tensor | None]:
        """As its attention."""
        h_Td, mass_T = self.attention(h_Td, layout, bias_HQK, mass=mass)
        return self.ff(h_Td), mass_T


class DecoderBlock(nn.Module):
    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross = CrossAttention(config)
        self.ff = FeedForward(config)

    def forward(self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor, memory: Sequence[Tensor],
                cross: Layout) -> Tensor:
        h_Td, _ = self.attention(h_Td, layout, bias_HQK, causal=True)
        return self.ff(self.cross(h_Td, memory, cross))

    def extend(self, h_Td: Tensor, layout: Layout, bias_HQK: Tensor, past: KeysValues | None, memory: Sequence[Tensor],
               cross: Layout) -> tuple[Tensor, KeysValues]:
        h_Td, past = self.attention.extend(h_Td, layout, bias_HQK, past)
        return self.ff(self.cross(h_Td, memory, cross)), past
