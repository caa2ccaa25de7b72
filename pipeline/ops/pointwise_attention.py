"""HSTU's attention over a packed axis: pointwise weights instead of a softmax, causal, within each sequence.

    silu      weight = SiLU(score) / n          Zhai et al. 2024, section 3.2; n: keys that the query sees
    softplus  weight = softplus(score) / sum    the variant in IntRR's code (AMAP-ML/IntRR, modules/hstu/hstu.py)

A score is q k^T plus a learned bias of the relative position and, with times, one of the time between the two tokens,
by its logarithm. HSTU's code divides by the padded length. The length of the batch must not matter here, and a length
that counts later tokens would tell of them; the norm that follows removes such factors anyway, up to its epsilon.

`pointwise_attention` is the one entry; `reference_pointwise` says the same slowly, and is what the tests compare with.

Shape legend: T positions of all sequences, H heads, D head width, B time buckets; n sequences of one group, Q positions
of each of its sequences; R relative distances.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.ops.layout import Times

if TYPE_CHECKING:
    from pipeline.ops.layout import Spans

Kind = Literal["silu", "softplus"]
BUCKET_WIDTH = 0.301  # of the natural logarithm of seconds, as in HSTU's code
TIME_BUCKETS = 128
EPSILON = 1e-8  # added to the sum of softplus weights, as in IntRR's code


@dataclass(frozen=True)
class PointwiseLayout:
    """How the packed axis falls into sequences, and the time buckets of each pair of tokens."""

    groups: tuple[tuple[int, int], ...] = ()  # (sequences, positions of each)
    buckets: tuple[Tensor | None, ...] = ()  # per group: int64 [n, Q, Q] of query and key; None: no times
    spans: "Spans | None" = None  # on a GPU, instead of these
    times: Times | None = None


def group_layout(groups: tuple[tuple[int, int], ...], times: Times | None) -> PointwiseLayout:
    """The layout of a CPU; the buckets are shared by all layers."""
    if times is None:
        return PointwiseLayout(groups, (None,) * len(groups))
    sizes = [count * length for count, length in groups]
    return PointwiseLayout(
        groups,
        tuple(
            time_buckets(asked.view(group)[:, :, None] - happened.view(group)[:, None, :])
            for group, asked, happened in zip(
                groups, times.asked_T.split(sizes), times.happened_T.split(sizes), strict=True
            )
        ),
    )


def time_buckets(passed: Tensor) -> Tensor:
    """Buckets of seconds, int64 of any shape: by the logarithm, one for up to a second and for times ahead."""
    return (passed.clamp(min=1).float().log() / BUCKET_WIDTH).long().clamp_(max=TIME_BUCKETS - 1)


def pointwise_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    layout: PointwiseLayout,
    bias: Tensor,
    time_bias_BH: Tensor | None,
    kind: Kind,
) -> Tensor:
    """Attention of each token to itself and those before it, [T, H, D] in the type of `v_THD`.

    Args:
        bias: of relative positions, float32: [H, Q, Q] made for the longest sequence (a shorter one takes the top left
            corner), or [H, R] by distance where the layout has spans, as `RelativeBias.by_distance` gives it: under
            autocast in bfloat16.
        time_bias_BH: float32; only where the layout has times.
    """
    if layout.spans is not None:
        from pipeline.ops.triton.pointwise_attention import triton_pointwise

        return triton_pointwise(q_THD, k_THD, v_THD, layout.spans, bias, layout.times, time_bias_BH, kind)
    sizes = [count * length for count, length in layout.groups]
    outputs = []
    for (count, length), buckets, *qkv in zip(
        layout.groups, layout.buckets, *(x.split(sizes) for x in (q_THD, k_THD, v_THD)), strict=True
    ):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        scores = q @ k.mT
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias[:, :length, :length]
        if buckets is not None and time_bias_BH is not None:
            scores = scores + F.embedding(buckets, time_bias_BH).permute(0, 3, 1, 2)
        seen = torch.ones(length, length, dtype=torch.bool, device=q.device).tril_()
        outputs.append((weights_of(scores, seen, kind).to(v.dtype) @ v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def weights_of(scores: Tensor, seen: Tensor, kind: Kind) -> Tensor:
    """Attention weights from biased scores over all keys (the last axis), 0 where the query does not see the key."""
    if kind == "silu":
        return F.silu(scores) * (seen / seen.sum(-1, keepdim=True, dtype=scores.dtype))
    weights = F.softplus(scores) * seen
    return weights / (weights.sum(-1, keepdim=True) + EPSILON)
