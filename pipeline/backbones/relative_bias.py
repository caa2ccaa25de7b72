"""This module holds T5's position bias: a learned number per head and bucket of distance, added to attention's scores.

A distance is the key's position minus the query's.

Shape legend: H heads; local: Q query positions, C key positions (columns), R relative distances, B buckets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.ops.layout import Layout, whole_tiles

BLOCK = 16_384  # distances whose buckets are computed at once


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of distance, which all layers of a stack share (T5, section 2.1)."""

    bucket_of_distance: Tensor

    def __init__(self, config: BackboneConfig, bidirectional: bool):
        super().__init__()
        self.reach = config.relative_max_distance  # distances beyond it fall in the bucket of the farthest
        self.weight = nn.Parameter(torch.randn(config.relative_buckets, config.heads) * config.d_model**-0.5)
        table = bucket_table(bidirectional, config.relative_buckets, self.reach)
        self.register_buffer("bucket_of_distance", table, persistent=False)

    def forward(self, queries: range, keys: int) -> Tensor:
        """Return the bias [H, Q, C] of the query positions `queries` and the key positions 0 .. keys - 1."""
        device = self.weight.device
        key_C = torch.arange(keys, device=device)
        query_Q = torch.arange(queries.start, queries.stop, device=device)
        distance_QC = key_C - query_Q[:, None]
        # The table's index 0 is distance -reach: reach 2, distances -3 -1 0 5 -> clamped -2 -1 0 2 -> index 0 1 2 4
        buckets_QC = self.bucket_of_distance[distance_QC.clamp_(-self.reach, self.reach) + self.reach]
        return F.embedding(buckets_QC, self.weight).permute(2, 0, 1)

    def for_layout(self, layout: Layout, longest: int) -> Tensor:
        """Return the bias of a self-attention in the form that its layout takes; `longest` bounds the positions.

        The form is [H, R] where the layout takes its bias by distance, else [H, longest, longest].
        """
        if layout.bias_by_distance:
            return self.by_distance(longest)
        bias_HQC: Tensor = self(range(longest), longest)
        return bias_HQC

    def by_distance(self, length: int) -> Tensor:
        """Return the bias [H, R] by distance: column R // 2 + i is the bias of distance i.

        The distances reach over sequences of `length`, and over the rest of a GPU kernel's last tile.
        """
        most = whole_tiles(length)
        distances = torch.arange(-most, most + 1, device=self.weight.device).clamp_(-self.reach, self.reach)
        one_hot_RB = F.one_hot(self.bucket_of_distance[distances + self.reach], len(self.weight))
        # A matrix product rather than a look-up: its gradient is a sum in a fixed order, so that runs repeat exactly.
        return (one_hot_RB.to(self.weight.dtype) @ self.weight).T.contiguous()


def bucket_table(bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket, int64, of each distance from -max_distance to max_distance."""
    table = torch.empty(2 * max_distance + 1, dtype=torch.int64)
    # In blocks: up to a million either way, the steps between would take ten times the memory of the table.
    for start in range(0, len(table), BLOCK):
        block = table[start : start + BLOCK]
        distances = torch.arange(start, start + len(block)) - max_distance
        block.copy_(relative_buckets(distances, bidirectional, buckets, max_distance))
    return table


def relative_buckets(distances: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """Return T5's bucket of each distance: exact when near, logarithmic up to `max_distance`.

    Args:
        distances: int64, key positions minus query positions.
        bidirectional: keys on both sides of a query have buckets; otherwise later keys share the bucket of distance 0.
    """
    base = torch.zeros_like(distances)
    if bidirectional:
        # Half of the buckets for earlier keys, half for later ones.
        buckets //= 2
        base = torch.where(distances > 0, buckets, 0)
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    # 16 buckets up to distance 128: distances 0 .. 7 have their buckets 0 .. 7, and 8, 16, 32, 64 the buckets 8, 10,
    # 12, 14; from 128 on all are in the last, 15.
    exact = buckets // 2
    scale = (buckets - exact) / math.log(max_distance / exact)
    far = exact + ((distances.clamp(min=1).float() / exact).log() * scale).long()
    return base + torch.where(distances < exact, distances, far.clamp(max=buckets - 1))
