"""`Hstu` is HSTU (Zhai et al. 2024, "Actions Speak Louder than Words"), causal and packed, over Semantic IDs or item
vectors.

A layer (Eq. 1 to 3): U, V, Q, K = SiLU(W norm(x)); A V by pointwise attention (ops/pointwise_attention.py); then
x + W' (norm(A V) * U). Its bias depends on the relative position, and on the logarithm of the time between two items.
This layer differs from the authors' research code:
- time is counted from the query's item. Theirs counts from the item that is to be predicted, whose time only
  training knows;
- positions fall into T5's buckets instead of one for each distance, so that no length is built in; the two biases have
  a number per head instead of one for all heads;
- items are Semantic IDs with a head per level, as in every backbone here; a norm precedes the heads.
`hstu_attention: softplus` is the layer of IntRR's code: softplus weights that sum to one, scores over sqrt(D), SiLU on
U alone, no norm after the attention and no times.

Where kernels run, all heads are padded with zeros to whole 16 bytes, and products take such rows (ops/linear.py): in
the published sizes for MovieLens-1M the model is 50 wide and a head 50 or 25.

Shape legend: T tokens of all sequences, d width of the model, H heads, D width of a head, padded where kernels run.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.blocks import module_list
from pipeline.backbones.causal import CausalBackbone, CausalBlock
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.catalogue import Catalogue
from pipeline.ops.dropout import Dropout
from pipeline.ops.layout import Layout, uses_kernels
from pipeline.ops.linear import padded_linear
from pipeline.ops.pointwise import TIME_BUCKETS, time_buckets
from pipeline.ops.pointwise_attention import pointwise_attention, pointwise_weights

STD = 0.02  # standard deviation of HSTU's initialisation


class HstuBlock(CausalBlock):
    """One layer of HSTU: pointwise attention with SiLU weights; its gate is U."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        inner = config.heads * config.d_head
        self.heads = config.heads
        self.d_head = config.d_head
        self.kind = config.hstu_attention
        self.norm = nn.LayerNorm(config.d_model, 1e-6, elementwise_affine=False)
        self.uvqk = nn.Linear(config.d_model, 4 * inner, bias=False)
        self.bias = RelativeBias(config, bidirectional=False)
        self.time_bias = nn.Parameter(torch.randn(TIME_BUCKETS, config.heads) * STD) if config.wants_times else None
        self.mixed_norm: nn.Module = nn.LayerNorm(inner, 1e-6, elementwise_affine=False)
        self.o = nn.Linear(inner, config.d_model)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.uvqk.weight, std=STD)
        nn.init.normal_(self.bias.weight, std=STD)
        nn.init.xavier_uniform_(self.o.weight)
        nn.init.zeros_(self.o.bias)

    def project(self, h_Td: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, v, q, k = F.silu(self._uvqk(h_Td)).unbind(1)
        return q, k, v, u

    def _uvqk(self, h_Td: Tensor) -> Tensor:
        """Return the product of all four, [T, 4, H, D]."""
        x_Td = self.norm(h_Td)
        if uses_kernels(h_Td.device):
            product = padded_linear(x_Td, self.uvqk.weight, self.uvqk.bias, part=self.d_head)
        else:
            product = self.uvqk(x_Td)
        return torch.unflatten(product, 1, (4, self.heads, -1))

    def attend(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        return pointwise_attention(q_THD, k_THD, v_THD, layout, bias, self.time_bias, self.kind)

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return pointwise_weights(scores, seen, self.kind)

    def bias_of_times(self, elapsed: Tensor) -> Tensor:
        assert self.time_bias is not None, "times are given to a layer with a time bias only"
        return F.embedding(time_buckets(elapsed), self.time_bias)

    def finish(self, h_Td: Tensor, mixed_THD: Tensor, gate: Tensor) -> Tensor:
        states_Td: Tensor = h_Td + self._out(self.dropout(self.mixed_norm(self._real(mixed_THD)) * self._real(gate)))
        return states_Td

    def _real(self, x_THD: Tensor) -> Tensor:
        """Return the columns of all heads without those that pad a head."""
        return x_THD[..., : self.d_head].flatten(1)

    def _out(self, x: Tensor) -> Tensor:
        """Return the output product [T, d]."""
        if uses_kernels(x.device):
            width = len(self.o.weight)
            return padded_linear(x, self.o.weight, self.o.bias, part=width)[:, :width]
        out_Td: Tensor = self.o(x)
        return out_Td


class SoftplusBlock(HstuBlock):
    """One layer of IntRR's code: softplus weights, SiLU on U alone, no norm after the attention."""

    def __init__(self, config: BackboneConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.d_model)
        self.uvqk = nn.Linear(config.d_model, 4 * config.heads * config.d_head)
        self.mixed_norm = nn.Identity()
        self.o = nn.Linear(config.heads * config.d_head, config.d_model)
        nn.init.normal_(self.bias.weight)

    def project(self, h_Td: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, v, q, k = self._uvqk(h_Td).unbind(1)
        return q * self.d_head**-0.5, k, v, F.silu(u)

    def finish(self, h_Td: Tensor, mixed_THD: Tensor, gate: Tensor) -> Tensor:
        states_Td: Tensor = h_Td + self.dropout(self._out(self._real(mixed_THD) * self._real(gate)))
        return states_Td


class Hstu(CausalBackbone[HstuBlock]):
    """A stack of `decoder_layers` HSTU layers and a final norm; each layer has its position bias."""

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        super().__init__(config, catalogue, vectors_only)
        layer = HstuBlock if config.hstu_attention == "silu" else SoftplusBlock
        self.blocks = module_list(layer(config) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model, 1e-6, elementwise_affine=False)
        if not vectors_only:
            nn.init.normal_(self.tokens.weight, std=STD)
        if self.action_tokens is not None:
            self.action_tokens.initialise()

    @property
    def input_scale(self) -> float:
        scale: float = self.config.d_model**0.5
        return scale

    def embed(self, tokens_T: Tensor) -> Tensor:
        return super().embed(tokens_T) * self.input_scale

    def position_bias(self, block: HstuBlock) -> RelativeBias:
        return block.bias
