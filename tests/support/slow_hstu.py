"""HSTU's layers for one sequence, loop by loop in float64, from the equations."""

import math

import torch
import torch.nn.functional as F

from pipeline.backbones.hstu import Hstu


def slow_stack(model: Hstu, h: torch.Tensor, asked: list[int], happened: list[int]) -> torch.Tensor:
    """States of all tokens of one sequence, float64 [T, d].

    Args:
        h: vectors of the tokens, which the first layer reads.
        asked: the time that each token asks from, in seconds.
        happened: the time of each token, in seconds.
    """
    config = model.config
    weights = {name: value.double() for name, value in model.state_dict().items()}
    inner, length = config.heads * config.d_head, len(h)
    for number in range(config.decoder_layers):
        block = f"blocks.{number}."
        mean, variance = h.mean(1, keepdim=True), h.var(1, keepdim=True, unbiased=False)
        x = (h - mean) / (variance + 1e-6).sqrt() @ weights[block + "uvqk.weight"].T
        u, v, q, k = (x * x.sigmoid()).split(inner, 1)
        rows = torch.zeros(length, inner, dtype=torch.float64)
        for head in range(config.heads):
            part = slice(head * config.d_head, (head + 1) * config.d_head)
            for i in range(length):
                for j in range(i + 1):
                    bucket = int(math.log(max(asked[i] - happened[j], 1)) / 0.301)
                    bias = weights[block + "bias.weight"][distance_bucket(config.relative_buckets, i - j), head]
                    score = q[i, part] @ k[j, part] + bias + weights[block + "time_bias"][bucket, head]
                    rows[i, part] += score * score.sigmoid() / (i + 1) * v[j, part]
        h = h + F.layer_norm(rows, [inner], eps=1e-6) * u @ weights[block + "o.weight"].T + weights[block + "o.bias"]
    return F.layer_norm(h, [config.d_model], eps=1e-6)


def distance_bucket(buckets: int, ago: int, reach: int = 24) -> int:
    """T5's bucket of a key `ago` positions before the query: the first half is exact, the rest logarithmic."""
    exact = buckets // 2
    return (
        ago if ago < exact else min(exact + int(math.log(ago / exact) / math.log(reach / exact) * exact), buckets - 1)
    )
