"""T5's position bias: a learned number per head and bucket of distance, added to attention's scores.

Shape legend: H heads, Q queries, K keys, R relative distances, B buckets.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.ops.layout import Layout, whole_tiles


class RelativeBias(nn.Module):
    """A learned bias per head and bucket of distance, shared by all layers of a stack (T5, section 2.1)."""

    bucket_of_distance: Tensor

    def __init__(self, config: BackboneConfig, bidirectional: bool):
        super().__init__()
        self.reach = config.relative_max_distance  # distances beyond it fall in the bucket of the farthest
        self.weight = nn.Parameter(torch.randn(config.relative_buckets, config.heads) * config.d_model**-0.5)
        distances = torch.arange(-self.reach, self.reach + 1)
        buckets = relative_buckets(distances, bidirectional, config.relative_buckets, self.reach)
        self.register_buffer("bucket_of_distance", buckets, persistent=False)

    def forward(self, queries: range, keys: int) -> Tensor:
        """[H, queries, keys] for the query positions `queries` and the key positions 0 .. keys - 1."""
        device = self.weight.device
        distance_QK = (
            torch.arange(keys, device=device) - torch.arange(queries.start, queries.stop, device=device)[:, None]
        )
        buckets_QK = self.bucket_of_distance[distance_QK.clamp_(-self.reach, self.reach) + self.reach]
        return F.embedding(buckets_QK, self.weight).permute(2, 0, 1)

    def for_layout(self, layout: Layout, longest: int) -> Tensor:
        """The bias of a self-attention, in the form that its layout takes; `longest` bounds the positions."""
        return self.by_distance(longest) if layout.bias_by_distance else self(range(longest), longest)

    def by_distance(self, length: int) -> Tensor:
        """[H, R]: column R // 2 + d is the bias of key position minus query position d, for sequences of `length` and
        what they leave free in a GPU kernel's last tile.
        """
        most = whole_tiles(length)
        distances = torch.arange(-most, most + 1, device=self.weight.device).clamp_(-self.reach, self.reach)
        one_hot_RB = F.one_hot(self.bucket_of_distance[distances + self.reach], len(self.weight))
        return (one_hot_RB.to(self.weight.dtype) @ self.weight).T.contiguous()  # a product: its gradient adds in order


def relative_buckets(distances: Tensor, bidirectional: bool, buckets: int, max_distance: int) -> Tensor:
    """T5's buckets of key position minus query position: exact when near, logarithmic up to `max_distance`."""
    base = torch.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        base = torch.where(distances > 0, buckets, 0)
        distances = distances.abs()
    else:
        distances = (-distances).clamp(min=0)
    exact = buckets // 2
    scale = (buckets - exact) / math.log(max_distance / exact)
    far = exact + ((distances.clamp(min=1).float() / exact).log() * scale).long()
    return base + torch.where(distances < exact, distances, far.clamp(max=buckets - 1))
