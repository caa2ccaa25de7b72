"""`Decoder` is a T5-style causal decoder over Semantic IDs: GRID's decoder-only TIGER, which IntRR builds on.

Blocks, relative position bias and initialisation are those of T5's decoder without cross-attention (t5.py).
packing/sequences.py says how a window becomes a sequence, and causal.py how a network trains and decodes with it.

Shape legend: T tokens of all sequences, d width of the model, H heads, D width of a head.
"""

from torch import Tensor, nn

from pipeline.backbones.blocks import FeedForward, SelfAttention, module_list
from pipeline.backbones.causal import CausalBackbone, CausalBlock
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.catalogue import Catalogue
from pipeline.ops.attention import attention
from pipeline.ops.dropout import Dropout
from pipeline.ops.layout import Layout
from pipeline.ops.linear import RMSNorm, linear


class DecoderOnlyBlock(CausalBlock):
    """One layer: causal self-attention, then feed-forward."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.attention = SelfAttention(config)
        self.ff = FeedForward(config)

    def project(self, h_Td: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v = self.attention.project(h_Td)
        return q, k, v, h_Td  # T5 has no gate

    def attend(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        dropout = self.attention.p if self.training else 0.0
        return attention(q_THD, k_THD, v_THD, layout, bias, causal=True, dropout=dropout)[0]

    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        return scores.masked_fill(~seen, float("-inf")).softmax(-1)

    def finish(self, h_Td: Tensor, mixed_THD: Tensor, gate: Tensor) -> Tensor:
        h_Td = linear(self.attention.o, mixed_THD.flatten(1), self.attention.dropout, residual_Td=h_Td)
        states_Td: Tensor = self.ff(h_Td)
        return states_Td


class Decoder(CausalBackbone[DecoderOnlyBlock]):
    """A stack of `decoder_layers` causal T5 blocks and a final norm; all blocks share one position bias."""

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        super().__init__(config, catalogue, vectors_only)
        self.bias = RelativeBias(config, bidirectional=False)
        self.blocks = module_list(DecoderOnlyBlock(config) for _ in range(config.decoder_layers))
        self.norm = nn.Sequential(RMSNorm(config.d_model), Dropout(config.dropout))
        self._initialise_as_t5()

    def position_bias(self, block: DecoderOnlyBlock) -> RelativeBias:
        return self.bias
