"""The encoder of the T5 family, rearranged for speed; the numbers are those of `transformers`' own, as the tests check.

Nearly all of the work is in four matrix products of a block, so these are made as few and as large as they can be, and
what lies between them is fused (fused.py): queries, keys and values are one product, and so are the two halves of a
gated feed-forward; the residual with the next norm, and the gate, are one kernel each. Attention is a hundredth of the
work at a hundred tokens: PyTorch's own, with bias and padding in one mask that all blocks share. The residual stream
stays in float32; in bfloat16 it would lose what later blocks add.

Texts of a batch should be of about one length (text.py sorts them): their padding is computed like everything else.

Shape legend: B texts, L tokens of the longest, T = B * L, H heads, D head width, d model width, F feed-forward width.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.activations import ACT2FN
from transformers.models.t5.modeling_t5 import T5Attention

from pipeline.embed.fused import add_norm, fused, gate, gelu_tanh, rms_norm

FAMILY = ("t5", "mt5")  # `model_type` of T5, T5 v1.1, Flan-T5 and mT5
ALIGNED = 16  # columns; attention's kernels want rows of the mask to start at such multiples


class T5Encoder(nn.Module):
    """For inference only: no dropout.

    config: `transformers.T5Config`, or one of the same fields.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.blocks = cast(Sequence[_Block], nn.ModuleList(_Block(config) for _ in range(config.num_layers)))
        self.act = gelu_tanh if config.dense_act_fn == "gelu_new" else ACT2FN[config.dense_act_fn]
        self.norm = nn.Parameter(torch.ones(config.d_model))

    @classmethod
    def of_transformers(cls, model: Any) -> "T5Encoder":
        """With the weights of a `T5EncoderModel` (or MT5's), on its device and in its type."""
        with torch.device("meta"):
            encoder = cls(model.config)
        encoder.load_state_dict(_weights(model.encoder), assign=True)
        return encoder.eval()

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """float32 [B, L, d]: the last hidden states. mask_BL: bool, where a token is real, at the front of each row."""
        # Of the fused kernels only this one takes a mask without a plan of its own for every shape.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if ids_BL.is_cuda else nullcontext():
            return self._run(ids_BL, mask_BL)

    def _run(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        config, eps = self.config, self.config.layer_norm_epsilon
        mask_BHLL = self._mask(mask_BL)
        h_Td = self.tokens(ids_BL).flatten(0, 1).float()
        n_Td = rms_norm(h_Td, self.blocks[0].attention_norm, eps)
        for block, after in zip(
            self.blocks, [*(later.attention_norm for later in self.blocks[1:]), self.norm], strict=True
        ):
            h_Td, n_Td = fused(add_norm, h_Td, block.attend(n_Td, mask_BHLL), block.ff_norm, eps)
            x_Td = block.wo(fused(gate, block.wi(n_Td), self.act, config.is_gated_act))
            h_Td, n_Td = fused(add_norm, h_Td, x_Td, after, eps)
        return n_Td.float().unflatten(0, ids_BL.shape)

    def _mask(self, mask_BL: Tensor) -> Tensor:
        """[B, H, L, L], added to the scores: the bias by relative distance, and -inf where a key is padding."""
        L, device = mask_BL.shape[1], mask_BL.device
        distance_LL = torch.arange(L, device=device) - torch.arange(L, device=device)[:, None]
        buckets_LL = T5Attention._relative_position_bucket(
            distance_LL,
            bidirectional=True,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        bias_HLL = self.bias(buckets_LL).permute(2, 0, 1)
        aligned = (L + ALIGNED - 1) // ALIGNED * ALIGNED
        mask_BHLL = bias_HLL.new_empty(len(mask_BL), len(bias_HLL), L, aligned)[..., :L]
        mask_BHLL.copy_(bias_HLL)
        return mask_BHLL.masked_fill_(~mask_BL[:, None, None, :], float("-inf"))


class _Block(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.attention_norm = nn.Parameter(torch.ones(config.d_model))
        self.qkv = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.ff_norm = nn.Parameter(torch.ones(config.d_model))
        self.wi = nn.Linear(config.d_model, (1 + config.is_gated_act) * config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def attend(self, n_Td: Tensor, mask_BHLL: Tensor) -> Tensor:
        B, H, L, _ = mask_BHLL.shape
        q, k, v = self.qkv(n_Td).view(B, L, 3, H, -1).permute(2, 0, 3, 1, 4).unbind()
        mixed_BHLD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BHLL, scale=1.0)  # T5 scales no scores
        return self.o(mixed_BHLD.transpose(1, 2).reshape(B * L, -1))


def _weights(stack: Any) -> dict[str, Tensor]:
    """The state of a T5Encoder from a `T5Stack`."""
    weights = {
        "tokens.weight": stack.embed_tokens.weight,
        "norm": stack.final_layer_norm.weight,
        "bias.weight": stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight,
    }
    for i, block in enumerate(stack.block):
        attention, ff = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        gated = hasattr(ff, "wi_0")
        weights |= {
            f"blocks.{i}.attention_norm": block.layer[0].layer_norm.weight,
            f"blocks.{i}.qkv.weight": torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]),
            f"blocks.{i}.o.weight": attention.o.weight,
            f"blocks.{i}.ff_norm": block.layer[1].layer_norm.weight,
            f"blocks.{i}.wi.weight": torch.cat([ff.wi_0.weight, ff.wi_1.weight]) if gated else ff.wi.weight,
            f"blocks.{i}.wo.weight": ff.wo.weight,
        }
    return {name: weight.detach() for name, weight in weights.items()}
