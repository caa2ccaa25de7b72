"""RASTP's equations and the authors' code, written slowly: one window, head and token at a time, in float64."""

from fractions import Fraction

import torch
from typed import present

from pipeline.backbones.blocks import EncoderBlock
from pipeline.backbones.relative_bias import relative_buckets
from pipeline.backbones.t5 import T5
from pipeline.strategies.rastp.config import RastpConfig


@torch.no_grad()
def encode(
    model: T5, history: list[int], config: RastpConfig, pad_to: int = 0, scores: None = None
) -> tuple[torch.Tensor, list[int], list[float]]:
    """(states after the encoder [K, d], kept positions, scores of all tokens) of one window, by Eq. 4 to 8.

    `scores`, when given, is used instead of Eq. 6.
    """
    tokens = model.tokens_IS[torch.as_tensor(history)].flatten().tolist()
    real = len(tokens)
    if config.counts_padding:
        tokens += padding(model, pad_to)[real:]
    h = model.tokens.weight[tokens]
    positions, importance = list(range(len(tokens))), None
    for number, block in enumerate(model.encoder, start=1):
        lost = number > config.after_layer and not config.keep_positions
        h, weights = run_block(model, block, h, None if lost else positions, real)
        if number == config.after_layer:
            counted = weights if config.padded_queries == "count" else weights[:, :real]
            importance = scores or score(config.score, h, counted)
            positions = choose_tokens(importance[:real], config, model.levels, model.tokens_IS.shape[1], pad_to)
            h, real = h[positions], len(positions)
    return model.encoder_norm(h), positions, present(importance)


def padding(model: T5, pad_to: int) -> list[int]:
    """Items of token 0, each with its separator, as far as `pad_to`."""
    item = [0] * model.levels + [model.separator] * model.config.separators
    return [item[position % len(item)] for position in range(pad_to)]


def run_block(
    model: T5, block: EncoderBlock, h: torch.Tensor, positions: list[int] | None, real: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, attention weights [H, Q, K]) of one encoder block; keys from `real` on are padding."""
    config = model.config
    x = h / (h.pow(2).mean(1, keepdim=True) + 1e-6).sqrt() * block.attention.norm.weight
    q, k, v = (x @ w.T for w in block.attention.qkv.weight.chunk(3))
    heads, weights = [], []
    for head in range(config.heads):
        own = slice(head * config.d_head, (head + 1) * config.d_head)
        scores = q[:, own] @ k[:, own].T
        if positions is not None:
            scores = scores + bias(model, positions)[..., head]
        scores[:, real:] = float("-inf")
        weights.append(scores.softmax(1))
        heads.append(weights[-1] @ v[:, own])
    return block.ff(h + torch.cat(heads, 1) @ block.attention.o.weight.T), torch.stack(weights)


def bias(model: T5, positions: list[int]) -> torch.Tensor:
    """[Q, K, H] of the tokens at these positions."""
    at = torch.tensor(positions)
    config = model.config
    buckets = relative_buckets(at - at[:, None], True, config.relative_buckets, config.relative_max_distance)
    return model.encoder_bias.weight[buckets]


def score(kind: str, h: torch.Tensor, weights: torch.Tensor) -> list[float]:
    l1, l2, mass = [], [], []
    for token in range(len(h)):
        l1.append(sum(abs(float(value)) for value in h[token]))
        l2.append(sum(float(value) ** 2 for value in h[token]) ** 0.5)
        mass.append(sum(float(value) for value in weights[:, :, token].flatten()))
    return {"l1": l1, "l2": l2, "attention": mass, "rastp": [m * s for m, s in zip(mass, l1, strict=True)]}[kind]


def choose_tokens(scores: list[float], config: RastpConfig, levels: int, per_item: int, pad_to: int) -> list[int]:
    """The positions that are kept, in order."""
    least = config.min_tokens
    if config.keep_last_item:
        scores = [*scores[:-per_item], *[float("inf")] * per_item]
        least = max(least, levels if config.separators == "keep" else per_item)
    counted = [p for p in range(len(scores)) if config.separators == "compete" or p % per_item < levels]
    each = len([p for p in counted if p < per_item])
    whole, rest = divmod(config.base_length or pad_to, per_item)
    length = whole * each + min(rest, each) if config.base == "padded" else len(counted)
    share = Fraction(config.keep).limit_denominator(10_000)
    if config.unit == "item":
        totals = {
            item: sum(scores[p] for p in counted if p // per_item == item) for item in range(len(scores) // per_item)
        }
        budget = max(int(share * (length // each)), -(-least // each))
        best = sorted(totals, key=lambda item: (-totals[item], item))[:budget]
        return [p for p in range(len(scores)) if p // per_item in best]
    best = sorted(counted, key=lambda p: (-scores[p], p))[: max(int(share * length), least)]
    items = {p // per_item for p in best}
    separators = [p for p in range(len(scores)) if p not in counted and p // per_item in items]
    return sorted([*best, *separators])


def pooled(model: T5, history: list[int], config: RastpConfig) -> tuple[torch.Tensor, list[int]]:
    """(states after the encoder, positions) of one window whose tokens are pooled."""
    per_item, levels = model.tokens_IS.shape[1], model.levels
    h = model.tokens.weight[model.tokens_IS[torch.as_tensor(history)].flatten().tolist()]
    positions = list(range(len(h)))
    for number, block in enumerate(model.encoder, start=1):
        h, _ = run_block(model, block, h, positions, len(h))
        if number == config.after_layer:
            h, positions = pool(h, config, levels, per_item)
    return model.encoder_norm(h), positions


def pool(h: torch.Tensor, config: RastpConfig, levels: int, per_item: int) -> tuple[torch.Tensor, list[int]]:
    """As many pools as pruning keeps units, of about equal sizes; each has the position of its first unit."""
    each = levels if config.separators == "keep" else per_item
    counted = [p for p in range(len(h)) if p % per_item < each]
    whole = config.pool_unit == "item"
    units = (
        [[p for p in counted if p // per_item == i] for i in range(len(h) // per_item)]
        if whole
        else [[p] for p in counted]
    )
    share = Fraction(config.keep).limit_denominator(10_000)
    least = -(-config.min_tokens // each) if whole else config.min_tokens
    pools = min(len(units), max(int(share * len(units)), least))
    runs = [[unit for j, unit in enumerate(units) if j * pools // len(units) == run] for run in range(pools)]
    states = {}
    for run in runs:
        for index, first in enumerate(run[0]):
            members = torch.stack([h[unit[index]] for unit in run])
            states[first] = members.mean(0) if config.method == "avg_pool" else members.amax(0)
    for separator in range(each, len(h) if each < per_item else 0, per_item):
        if any(p // per_item == separator // per_item for p in states):
            states[separator] = h[separator]
    positions = sorted(states)
    return torch.stack([states[p] for p in positions]), positions


def released(
    model: T5, windows: list[list[int]], pad_to: int, after_layer: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """The authors' modeling_t5.py on a padded batch, step by step: states [W, pad_to // 3, d] and their mask."""
    per_item = model.tokens_IS.shape[1]
    ids = torch.tensor(
        [
            model.tokens_IS[torch.as_tensor(window)].flatten().tolist()
            + padding(model, pad_to)[len(window) * per_item :]
            for window in windows
        ]
    )
    mask = torch.tensor([[p < len(window) * per_item for p in range(pad_to)] for window in windows])
    h_WPd = model.tokens.weight[ids]
    for number, block in enumerate(model.encoder, start=1):
        positions = list(range(h_WPd.shape[1])) if number <= after_layer else None  # the bias is gone after pruning
        outs = [run_block(model, block, h, positions, int(m.sum())) for h, m in zip(h_WPd, mask, strict=True)]
        h_WPd = torch.stack([h for h, _ in outs])
        if number == after_layer:
            attention_WHQK = torch.stack([weights for _, weights in outs])
            importance = attention_WHQK.sum(1).sum(1) * h_WPd.abs().sum(-1)  # padded queries and all
            importance = importance.masked_fill(~mask, float("-inf"))
            kept = importance.topk(max(1, int(pad_to * (1 / 3))), dim=1).indices.sort(1).values
            h_WPd = h_WPd.gather(1, kept[..., None].expand(-1, -1, h_WPd.shape[2]))
            mask = mask.gather(1, kept)
    return model.encoder_norm(h_WPd), mask
