"""Compute the attentions slowly, one sequence and one head at a time, in float64, for the tests to compare with.

Shape legend: T query and S key positions of all sequences, H heads, D head width, Q queries and J keys of a sequence,
n sequences of one group, B time buckets.
"""

import torch
from torch import Tensor

from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import EPSILON, Kind, Times, time_buckets


def reference_attention(
    q_THD: Tensor, k_SHD: Tensor, v_SHD: Tensor, layout: Layout, bias_HQJ: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Compute `attention` without dropout, one sequence and one head at a time, in float64."""
    out_THD = torch.zeros(q_THD.shape, dtype=torch.float64, device=q_THD.device)
    t = s = 0  # the first query and the first key of the sequence at hand
    for group, real_nJ in zip(layout.groups, layout.real_nJ(), strict=True):
        for row in range(group.sequences):
            real = slice(None) if real_nJ is None else real_nJ[row]
            for head in range(q_THD.shape[1]):
                q, k, v = (
                    x[start : start + length, head].double()
                    for x, start, length in ((q_THD, t, group.queries), (k_SHD, s, group.keys), (v_SHD, s, group.keys))
                )
                scores = q @ k.T
                if bias_HQJ is not None and layout.positions_S is not None:
                    positions = layout.positions_S[s : s + group.keys]
                    scores = scores + bias_HQJ[head][positions][:, positions].double()
                elif bias_HQJ is not None:
                    scores = scores + bias_HQJ[head, : group.queries, : group.keys].double()
                if causal:
                    scores = scores + torch.full_like(scores, float("-inf")).triu(1)
                out_THD[t : t + group.queries, head] = scores[:, real].softmax(-1) @ v[real]
            t += group.queries
            s += group.keys
    return out_THD


def reference_pointwise(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    lengths: list[int],
    bias_HQJ: Tensor,
    times: Times | None,
    time_bias_BH: Tensor | None,
    kind: Kind,
) -> Tensor:
    """Compute `pointwise_attention`, one sequence, head and query at a time, in float64."""
    out_THD = torch.zeros(q_THD.shape, dtype=torch.float64, device=q_THD.device)
    begin = 0
    for length in lengths:
        for head in range(q_THD.shape[1]):
            for i in range(length):
                keys = slice(begin, begin + i + 1)
                scores = k_THD[keys, head].double() @ q_THD[begin + i, head].double() + bias_HQJ[head, i, : i + 1]
                if times is not None and time_bias_BH is not None:
                    buckets = time_buckets(times.asked_T[begin + i] - times.happened_T[keys])
                    scores = scores + time_bias_BH[buckets, head].double()
                weights = scores * scores.sigmoid() / (i + 1) if kind == "silu" else (1 + scores.exp()).log()
                if kind == "softplus":
                    weights = weights / (weights.sum() + EPSILON)
                out_THD[begin + i, head] = weights @ v_THD[keys, head].double()
        begin += length
    return out_THD
