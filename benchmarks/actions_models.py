"""The network that `actions.py` compares with: HSTU over padded histories, as an engineer writes it with torch alone.

Equations, biases, loss and number of weights are those of the backbone `gr`. Every history takes P positions, and
attention is two matrix products with the weights between them in memory, as in the research code of HSTU's authors;
FlexAttention and `scaled_dot_product_attention` have a softmax, which HSTU has not.

Shape legend: W windows, H heads, D width of a head, d width of the model; local: P positions of a padded history, M
draws that stand for the catalogue, B time buckets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import relative_buckets
from pipeline.ops.pointwise import TIME_BUCKETS, time_buckets

STD = 0.02


class _Layer(nn.Module):
    buckets_PP: Tensor
    seen_PP: Tensor

    def __init__(self, config: BackboneConfig, positions: int):
        super().__init__()
        inner = config.heads * config.d_head
        self.heads, self.p = config.heads, config.dropout
        self.norm = nn.LayerNorm(config.d_model, 1e-6, elementwise_affine=False)
        self.mixed_norm = nn.LayerNorm(inner, 1e-6, elementwise_affine=False)
        self.uvqk = nn.Linear(config.d_model, 4 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model)
        self.position_bias = nn.Parameter(torch.randn(config.relative_buckets, config.heads) * STD)
        self.time_bias = nn.Parameter(torch.randn(TIME_BUCKETS, config.heads) * STD)
        ago = torch.arange(positions) - torch.arange(positions)[:, None]
        buckets = relative_buckets(ago, False, config.relative_buckets, config.relative_max_distance)
        self.register_buffer("buckets_PP", buckets)
        self.register_buffer(
            "seen_PP", torch.ones(positions, positions).tril() / (1 + torch.arange(positions))[:, None]
        )

    def forward(self, h_WPd: Tensor, times_WPP: Tensor) -> Tensor:
        u, v, q, k = F.silu(self.uvqk(self.norm(h_WPd))).unflatten(2, (4, self.heads, -1)).unbind(2)
        scores = torch.einsum("wihd,wjhd->whij", q, k)
        bias = self.position_bias[self.buckets_PP].permute(2, 0, 1) + self._time_bias(times_WPP)
        weights = (F.silu(scores + bias) * self.seen_PP).to(v.dtype)
        mixed = torch.einsum("whij,wjhd->wihd", weights, v).flatten(2)
        out: Tensor = h_WPd + self.o(F.dropout(self.mixed_norm(mixed) * u.flatten(2), self.p, self.training))
        return out

    def _time_bias(self, times_WPP: Tensor) -> Tensor:
        """Return the bias of times, [W, H, P, P].

        Gathered from a view of the table for each row of `times_WPP`, whose gradients are summed afterwards. The
        backward pass of an index into the one table adds all W P P gradients to B numbers, which wait for each other.
        """
        windows, positions, _ = times_WPP.shape
        rows_HRP = times_WPP.flatten(0, 1).expand(self.heads, -1, -1)
        table_HRB = self.time_bias.T[:, None].expand(-1, windows * positions, -1)
        return torch.unflatten(table_HRB.gather(2, rows_HRP), 1, (windows, positions)).transpose(0, 1)


class PaddedHstu(nn.Module):
    """HSTU over items with cosines and sampled softmax; `forward` returns the loss per target."""

    def __init__(self, config: BackboneConfig, items: int, positions: int):
        super().__init__()
        self.p = config.dropout
        self.temperature = config.temperature
        self.scale = config.d_model**0.5
        self.ids = nn.Embedding(items, config.d_model)
        self.layers = nn.ModuleList(_Layer(config, positions) for _ in range(config.decoder_layers))
        self.norm = nn.LayerNorm(config.d_model, 1e-6, elementwise_affine=False)
        nn.init.normal_(self.ids.weight, std=STD)

    def forward(
        self, items_WP: Tensor, times_WP: Tensor, targets_WP: Tensor, real_WP: Tensor, drawn_M: Tensor, log_M: Tensor
    ) -> Tensor:
        """Return the mean cross-entropy of the real targets, each among itself and the draws."""
        h_WPd = F.dropout(self.ids(items_WP) * self.scale, self.p, self.training)
        times_WPP = time_buckets(times_WP[:, :, None] - times_WP[:, None, :])
        for layer in self.layers:
            h_WPd = layer(h_WPd, times_WPP)
        states = F.normalize(self.norm(h_WPd).float(), dim=-1) / self.temperature
        targets = F.normalize(self.ids(targets_WP).float(), dim=-1)
        drawn_Md = F.normalize(self.ids(drawn_M).float(), dim=-1)
        logits = states @ drawn_Md.T - log_M
        logits = logits.masked_fill(drawn_M == targets_WP[..., None], -1e30)
        own = (states * targets).sum(-1, keepdim=True)
        loss_WP = torch.cat([own, logits], -1).logsumexp(-1) - own[..., 0]
        return (loss_WP * real_WP).sum() / real_WP.sum()
