"""Compute HSTU's attention over a packed axis: pointwise weights, not a softmax; causal, within each sequence.

    silu      weight = SiLU(score) / n          Zhai et al. 2024, section 3.2; n: keys that the query sees
    softplus  weight = softplus(score) / sum    the variant in IntRR's code (AMAP-ML/IntRR, modules/hstu/hstu.py)

A score is q k^T plus a learned bias of the relative position and, with times, a bias of the time between the two
tokens, by its logarithm. HSTU's code divides by the padded length. The length of the batch must not matter here, and a
length that counts later tokens would tell of them; the norm that follows removes such factors anyway, up to its
epsilon.

`pointwise_attention` is the only entry; `reference_pointwise` computes the same slowly, and the tests compare with it.

Shape legend: T positions of all sequences, H heads, D head width, B time buckets; Q positions of the longest sequence;
R relative distances.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import EPSILON, Kind


def pointwise_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: Layout,
    bias: Tensor,
    time_bias_BH: Tensor | None,
    kind: Kind,
) -> Tensor:
    """Compute the attention of each token to itself and the tokens before it, [T, H, D] in the type of `v_THD`.

    Args:
        bias: the bias of relative positions, float32: [H, Q, Q] made for the longest sequence (a shorter one takes the
            top left corner), or [H, R] by distance where `layout.bias_by_distance`: under autocast in bfloat16.
        time_bias_BH: the bias of time, float32; only where the layout is `timed`.
        kind: how scores become weights.
    """
    if layout.spans is not None:
        from pipeline.ops.triton.pointwise_attention import triton_pointwise

        return triton_pointwise(q_THD, k_THD, v_THD, layout.spans, bias, layout.bucket_rows, time_bias_BH, kind)
    # On a CPU one group of equally long sequences after another, by batched matrix products.
    sizes = [group.sequences * group.keys for group in layout.groups]
    outputs = []
    for number, (group, *qkv) in enumerate(
        zip(layout.groups, *(torch.split(x, sizes) for x in (q_THD, k_THD, v_THD)), strict=True)
    ):
        length = group.keys
        q, k, v = (x.unflatten(0, (group.sequences, length)).transpose(1, 2) for x in qkv)
        scores = q @ k.mT
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias[:, :length, :length]
        if layout.buckets and time_bias_BH is not None:
            scores = scores + F.embedding(layout.buckets[number], time_bias_BH).permute(0, 3, 1, 2)
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril_()
        outputs.append((pointwise_weights(scores, seen, kind).to(v.dtype) @ v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def pointwise_weights(scores: Tensor, seen: Tensor, kind: Kind) -> Tensor:
    """Return attention weights from biased scores over all keys (the last axis), 0 where a query does not see a key."""
    if kind == "silu":
        return F.silu(scores) * (seen / seen.sum(-1, keepdim=True, dtype=scores.dtype))
    weights = F.softplus(scores) * seen
    return weights / (weights.sum(-1, keepdim=True) + EPSILON)
