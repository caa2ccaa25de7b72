"""Run the encoder of the T5 family, rearranged for speed; the tests compare its numbers with those of `transformers`.

Nearly all of the work is in four matrix products of a block, so the products are few and large, and the operations
between them are fused (fused.py): queries, keys and values are one product, and so are the two halves of a gated
feed-forward; the residual with the next norm, and the gate, are one kernel each. Attention is a hundredth of the work
at a hundred tokens, so it is PyTorch's, with bias and padding in one mask that all blocks share. The residual stream
stays in float32: bfloat16 would round away what later blocks add.

Texts of a batch should be of about one length (text.py sorts them), because padding is computed like everything else.

Shape legend: B texts, S tokens of the longest text, R = B * S rows, padding included, H heads, D head width, d model
width.
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
ALIGNED = 16  # attention's kernels want each row of the mask to start at a multiple of so many columns


class T5Encoder(nn.Module):
    """A T5 encoder for inference, without dropout.

    Args:
        config: `transformers.T5Config`, or an object with the same fields.
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
        """Build the encoder from a `T5EncoderModel` (or MT5's), with its weights, on its device and in its type."""
        with torch.device("meta"):
            encoder = cls(model.config)
        encoder.load_state_dict(_weights(model.encoder), assign=True)
        return encoder.eval()

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Return the last hidden states, float32 [B, S, d].

        Args:
            mask_BS: bool, true for the tokens of the text, which stand at the front of each row, false for padding.
        """
        # Of the fused kernels only this one takes a mask without planning anew for every shape.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if ids_BS.is_cuda else nullcontext():
            return self._run(ids_BS, mask_BS)

    def _run(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        eps = self.config.layer_norm_epsilon
        gated = self.config.is_gated_act
        mask_BHSS = self._mask(mask_BS)

        # h is the residual stream, n its norm: each block ends with the norm that the next block begins with.
        h_Rd = self.tokens(ids_BS).flatten(0, 1).float()
        n_Rd = rms_norm(h_Rd, self.blocks[0].attention_norm, eps)
        next_norms = [*(later.attention_norm for later in self.blocks[1:]), self.norm]
        for block, next_norm in zip(self.blocks, next_norms, strict=True):
            h_Rd, n_Rd = fused(add_norm, h_Rd, block.attend(n_Rd, mask_BHSS), block.ff_norm, eps)
            x_Rd = block.wo(fused(gate, block.wi(n_Rd), self.act, gated))
            h_Rd, n_Rd = fused(add_norm, h_Rd, x_Rd, next_norm, eps)
        return n_Rd.float().view(*ids_BS.shape, -1)

    def _mask(self, mask_BS: Tensor) -> Tensor:
        """Return what is added to the scores, [B, H, S, S]: the bias by relative distance, -inf where a key is padding.

        `transformers` computes the bias of T5's section 2.1 (Raffel et al. 2020) in the same buckets.
        """
        length = mask_BS.shape[1]
        positions_S = torch.arange(length, device=mask_BS.device)
        distance_SS = positions_S - positions_S[:, None]
        buckets_SS = T5Attention._relative_position_bucket(
            distance_SS,
            bidirectional=True,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        bias_HSS: Tensor = self.bias(buckets_SS).permute(2, 0, 1)

        # Rows of 17 columns are allocated with 32, so that each begins at a multiple of ALIGNED.
        aligned = (length + ALIGNED - 1) // ALIGNED * ALIGNED
        mask_BHSS = bias_HSS.new_empty(len(mask_BS), len(bias_HSS), length, aligned)[..., :length]
        mask_BHSS.copy_(bias_HSS)
        return mask_BHSS.masked_fill_(~mask_BS[:, None, None, :], float("-inf"))


class _Block(nn.Module):
    """The weights of one block, and its attention."""

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

    def attend(self, n_Rd: Tensor, mask_BHSS: Tensor) -> Tensor:
        """Return the attention's contribution to the residual stream, [R, d]."""
        texts, heads, length, _ = mask_BHSS.shape
        q, k, v = self.qkv(n_Rd).view(texts, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
        mixed_BHSD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BHSS, scale=1.0)  # T5 scales no scores
        update_Rd: Tensor = self.o(mixed_BHSD.transpose(1, 2).reshape(texts * length, -1))
        return update_Rd


def _weights(stack: Any) -> dict[str, Tensor]:
    """Return the state of a T5Encoder, by name, from a `T5Stack`."""
    weights = {
        "tokens.weight": stack.embed_tokens.weight,
        "norm": stack.final_layer_norm.weight,
        "bias.weight": stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight,
    }
    for i, block in enumerate(stack.block):
        attention = block.layer[0].SelfAttention
        ff = block.layer[1].DenseReluDense
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
