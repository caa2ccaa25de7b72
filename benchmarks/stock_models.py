"""The networks of `stock.py`: TIGER's shape from parts of torch 2.11, and transformers' T5.

`PackedStock` is what an engineer builds of torch's parts in an afternoon: sequences end to end, attention by a part of
torch, everything else written down plainly and left to `torch.compile`. `PaddedStock` is transformers' T5.

Shape legend: W windows, T tokens of all histories, L levels, H heads, D width of a head, d width of the model; local: B
blocks of 128 positions, P positions of a padded group.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import relative_buckets
from pipeline.packing.batch import Batch

BLOCK = 128  # positions of a block of FlexAttention's masks


@dataclass(frozen=True, kw_only=True)
class PackedInputs:
    """One batch on the device; its tensors have one shape in all batches, so that one compilation serves them."""

    tokens_T: Tensor  # int64
    starts_W1: Tensor  # int32 [W + 1]: where the tokens of each window begin, and where the last ones end
    window_T: Tensor  # int32: the window of each token
    decoder_WL: Tensor  # int64: start token, then the codes before the last
    codes_WL: Tensor  # int64
    weights_W: Tensor  # 0: the window fills the batch
    blocks: tuple[Tensor, ...]  # of FlexAttention's two masks, see `_blocks`; empty for varlen_attn


def packed_inputs(batch: Batch, tokens_IS: Tensor, first_token: list[int], flex: bool) -> PackedInputs:
    """Return what the packed network reads of a batch of ours, with the tokens at a multiple of BLOCK for `flex`."""
    histories = batch.histories
    tokens_T = tokens_IS[histories.items_N].flatten()
    lengths_W = histories.lengths_W * tokens_IS.shape[1]
    windows = len(lengths_W)
    window_T = torch.repeat_interleave(torch.arange(windows, device=tokens_T.device), lengths_W)
    if flex:  # the tokens behind the last window are in no window, but in its blocks
        rest = -len(tokens_T) % BLOCK
        tokens_T = F.pad(tokens_T, (0, rest))
        window_T = F.pad(window_T, (0, rest), value=windows)
        lengths_W = torch.cat([lengths_W[:-1], lengths_W[-1:] + rest])
    starts_W1 = F.pad(lengths_W.cumsum(0), (1, 0)).int()
    first = torch.tensor(first_token, device=tokens_T.device)
    start = tokens_T.new_full((windows, 1), first_token[-1])
    levels = batch.codes_WL.shape[1]
    return PackedInputs(
        tokens_T=tokens_T,
        starts_W1=starts_W1,
        window_T=window_T.int(),
        decoder_WL=torch.cat([start, batch.codes_WL[:, :-1] + first[: levels - 1]], 1),
        codes_WL=batch.codes_WL,
        weights_W=batch.weights_W,
        blocks=_blocks(starts_W1, window_T, levels) if flex else (),
    )


def _blocks(starts_W1: Tensor, window_T: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Return the tensors of two masks: of the encoder, and of the decoder's view of it.

    Each block of queries sees the run of key blocks that holds its windows. `create_block_mask` would find the same by
    looking at each of the T x T pairs of positions.

    Returns:
        For each mask, int32: the number of key blocks of each query block [1, 1, B] and which they are [1, 1, B, B],
        then the query blocks of each key block.
    """
    from torch.nn.attention.flex_attention import BlockMask

    windows = len(starts_W1) - 1
    window_Q = torch.arange(windows * levels, device=window_T.device) // levels
    found: list[Tensor] = []
    for window_of_query in (window_T.long().clamp(max=windows - 1), window_Q):
        first_window = window_of_query[::BLOCK]
        ends = torch.arange(1, len(first_window) + 1, device=window_T.device) * BLOCK - 1
        last_window = window_of_query[ends.clamp(max=len(window_of_query) - 1)]
        first_B = starts_W1[first_window] // BLOCK
        count_B = (starts_W1[last_window + 1] - 1) // BLOCK - first_B + 1
        column = torch.arange(len(window_T) // BLOCK, device=window_T.device)
        blocks_BB = (first_B[:, None] + column).clamp(max=len(column) - 1)  # only the first `count` of a row count
        lengths = (len(window_of_query), len(window_T))
        mask = BlockMask.from_kv_blocks(count_B.int()[None, None], blocks_BB.int()[None, None], seq_lengths=lengths)
        assert mask.q_num_blocks is not None
        assert mask.q_indices is not None
        found += [mask.kv_num_blocks, mask.kv_indices, mask.q_num_blocks, mask.q_indices]
    return tuple(found)


class _FeedForward(nn.Module):
    """GRID's feed-forward: two ReLU layers."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        widths = [config.d_model, *[config.d_ff] * config.ff_hidden_layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(config.d_ff, config.d_model, bias=False)
        self.p = config.dropout

    def forward(self, h: Tensor) -> Tensor:
        for layer in self.hidden:
            h = F.dropout(layer(h).relu(), self.p, self.training)
        out: Tensor = self.out(h)
        return out


class _Block(nn.Module):
    def __init__(self, config: BackboneConfig, decoder: bool):
        super().__init__()
        inner = config.heads * config.d_head
        self.norms = nn.ModuleList(nn.RMSNorm(config.d_model, eps=1e-6) for _ in range(3 if decoder else 2))
        self.qkv = nn.Linear(config.d_model, 3 * inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if decoder:
            self.q = nn.Linear(config.d_model, inner, bias=False)
            self.kv = nn.Linear(config.d_model, 2 * inner, bias=False)
            self.cross_o = nn.Linear(inner, config.d_model, bias=False)
        self.ff = _FeedForward(config)


class PackedStock(nn.Module):
    """TIGER's shape over packed sequences, by `varlen_attn` or by FlexAttention.

    Neither part drops attention weights. FlexAttention can take the encoder's learned relative bias, varlen_attn has
    none. The decoder's self-attention, over L positions of each window, is `scaled_dot_product_attention` with dropout.

    Args:
        flex: FlexAttention, else varlen_attn.
        bias: the encoder has a relative bias; only with `flex`.
        longest: bound of a window's tokens.
    """

    def __init__(
        self, config: BackboneConfig, widths: tuple[int, ...], *, longest: int, flex: bool = False, bias: bool = False
    ):
        super().__init__()
        self.config = config
        self.flex = flex
        self.longest = longest
        self.levels = len(widths)
        self.tokens = nn.Embedding(sum(widths) + 2, config.d_model)
        self.tokens.weight.data.mul_(config.embedding_std)
        self.encoder: Any = nn.ModuleList(_Block(config, False) for _ in range(config.encoder_layers))
        self.decoder: Any = nn.ModuleList(_Block(config, True) for _ in range(config.decoder_layers))
        self.norms = nn.ModuleList(nn.RMSNorm(config.d_model, eps=1e-6) for _ in range(2))
        self.heads = nn.ModuleList(nn.Linear(config.d_model, width, bias=False) for width in widths)
        self.bias = nn.Embedding(config.relative_buckets, config.heads) if bias else None
        distance = torch.arange(-longest - BLOCK, longest + BLOCK + 1)  # of a key from a query
        table = relative_buckets(distance, True, config.relative_buckets, config.relative_max_distance)
        self.register_buffer("bucket", table, persistent=False)

    def forward(self, inputs: PackedInputs, masks: tuple[Any, Any] | None = None) -> Tensor:
        """Return the loss per window.

        Args:
            masks: BlockMask of the encoder and of the decoder's view of it, where `flex`.
        """
        p = self.config.dropout
        h_Td = F.dropout(self.tokens(inputs.tokens_T), p, self.training)
        bias_RH = None if self.bias is None else self.bias(self.bucket)
        for block in self.encoder:
            q, k, v = self._heads(block.qkv(block.norms[0](h_Td)), 3)
            mixed = self._encoder_attention(q, k, v, inputs, masks, bias_RH)
            h_Td = h_Td + F.dropout(block.o(mixed.flatten(1)), p, self.training)
            h_Td = h_Td + F.dropout(block.ff(block.norms[1](h_Td)), p, self.training)
        memory_Td = F.dropout(self.norms[0](h_Td), p, self.training)
        windows, levels = inputs.decoder_WL.shape
        h = F.dropout(self.tokens(inputs.decoder_WL.flatten()), p, self.training)
        for block in self.decoder:
            q, k, v = (
                x.unflatten(0, (windows, levels)).transpose(1, 2) for x in self._heads(block.qkv(block.norms[0](h)), 3)
            )
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p if self.training else 0.0)
            h = h + F.dropout(block.o(mixed.transpose(1, 2).flatten(0, 1).flatten(1)), p, self.training)
            (q,) = self._heads(block.q(block.norms[1](h)), 1)
            k, v = self._heads(block.kv(memory_Td), 2)
            mixed = self._cross_attention(q, k, v, inputs, masks)
            h = h + F.dropout(block.cross_o(mixed.flatten(1)), p, self.training)
            h = h + F.dropout(block.ff(block.norms[2](h)), p, self.training)
        h_WLd = F.dropout(self.norms[1](h), p, self.training).unflatten(0, (windows, levels))
        return weighted_loss([head(h_WLd[:, level]) for level, head in enumerate(self.heads)], inputs)

    def _heads(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        return torch.unflatten(x, 1, (parts, self.config.heads, self.config.d_head)).unbind(1)

    def _encoder_attention(
        self, q: Tensor, k: Tensor, v: Tensor, inputs: PackedInputs, masks: Any, bias_RH: Tensor | None
    ) -> Tensor:
        if not self.flex:
            return self._varlen(q, k, v, inputs.starts_W1, inputs.starts_W1, self.longest)
        if bias_RH is None:
            return self._flex(q, k, v, masks[0], None)
        middle = self.longest + BLOCK
        bias = bias_RH

        def with_bias(score: Tensor, _b: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            # Pairs of positions of two windows are masked; their distance only has to be within the table.
            return score + bias[(key - query).clamp(-middle, middle) + middle, head]

        # With the options that torch 2.11 chooses, this kernel asks for more shared memory than an H200 has.
        return self._flex(q, k, v, masks[0], with_bias, {"num_stages": 1})

    def _cross_attention(self, q: Tensor, k: Tensor, v: Tensor, inputs: PackedInputs, masks: Any) -> Tensor:
        if self.flex:
            return self._flex(q, k, v, masks[1], None)
        starts_q = torch.arange(len(inputs.starts_W1), device=q.device, dtype=torch.int32) * self.levels
        return self._varlen(q, k, v, starts_q, inputs.starts_W1, self.levels)

    def _varlen(self, q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, longest_q: int) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        mixed = varlen_attn(q, k, v, starts_q, starts_k, longest_q, self.longest)
        assert isinstance(mixed, Tensor)
        return mixed

    def _flex(self, q: Tensor, k: Tensor, v: Tensor, mask: Any, score_mod: Any, options: Any = None) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # [1, H, positions, D]
        mixed = flex_attention(q, k, v, score_mod=score_mod, block_mask=mask, kernel_options=options)
        assert isinstance(mixed, Tensor)
        return mixed[0].transpose(0, 1)


def block_masks(inputs: PackedInputs) -> tuple[Any, Any]:
    """Return the BlockMask of the encoder and that of the decoder's view of it; they read the tensors of `inputs`."""
    from torch.nn.attention.flex_attention import BlockMask

    window_T, levels = inputs.window_T, inputs.codes_WL.shape[1]
    tokens, queries = len(window_T), inputs.decoder_WL.numel()

    def same_window(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return window_T[query] == window_T[key]

    def of_the_query(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return window_T[key] == query // levels

    masks = []
    for number, (mask_mod, count) in enumerate(((same_window, tokens), (of_the_query, queries))):
        kv_count, kv_blocks, q_count, q_blocks = inputs.blocks[4 * number : 4 * number + 4]
        mask = BlockMask.from_kv_blocks(kv_count, kv_blocks, mask_mod=mask_mod, seq_lengths=(count, tokens))
        mask.q_num_blocks, mask.q_indices = q_count, q_blocks
        masks.append(mask)
    return masks[0], masks[1]


@dataclass(frozen=True)
class PaddedInputs:
    """A group of windows of near lengths, padded to the longest."""

    tokens_WP: Tensor  # int64
    real_WP: Tensor  # bool
    decoder_WL: Tensor
    codes_WL: Tensor
    weights_W: Tensor


def padded_inputs(inputs: PackedInputs, groups: int) -> list[PaddedInputs]:
    """Return the windows of a packed batch (ascending lengths; those that fill are left out) in `groups` groups.

    A group has as many positions as its longest window, rounded up to a multiple of 8, as kernels like them.
    """
    starts = inputs.starts_W1.cpu().numpy().astype(np.int64)
    rows = np.flatnonzero(inputs.weights_W.cpu().numpy() > 0)
    found = []
    for chosen in np.array_split(rows, groups):
        lengths = np.diff(starts)[chosen]
        position = np.arange(-(-lengths.max() // 8) * 8)
        real_WP = torch.from_numpy(position < lengths[:, None]).to(inputs.tokens_T.device)
        index = torch.from_numpy(np.minimum(starts[chosen][:, None] + position, starts[-1] - 1)).to(real_WP.device)
        at = torch.from_numpy(chosen).to(real_WP.device)
        tokens_WP = torch.where(real_WP, inputs.tokens_T[index], 0)
        found.append(PaddedInputs(tokens_WP, real_WP, inputs.decoder_WL[at], inputs.codes_WL[at], inputs.weights_W[at]))
    return found


class PaddedStock(nn.Module):
    """transformers' T5 in TIGER's shape: its attention by SDPA, with GRID's feed-forward and a head per level."""

    def __init__(self, config: BackboneConfig, widths: tuple[int, ...]):
        from transformers import T5Config, T5Model

        super().__init__()
        settings: Any = T5Config  # its type knows fewer arguments than it takes
        self.t5: Any = T5Model(
            settings(
                vocab_size=sum(widths) + 2,
                d_model=config.d_model,
                d_kv=config.d_head,
                d_ff=config.d_ff,
                num_layers=config.encoder_layers,
                num_decoder_layers=config.decoder_layers,
                num_heads=config.heads,
                relative_attention_num_buckets=config.relative_buckets,
                relative_attention_max_distance=config.relative_max_distance,
                dropout_rate=config.dropout,
                layer_norm_epsilon=1e-6,
                use_cache=False,
                attn_implementation="sdpa",
            )
        )
        self.t5.shared.weight.data.mul_(config.embedding_std)
        for stack in (self.t5.encoder, self.t5.decoder):
            blocks: Any = stack.block
            for block in blocks:
                block.layer[-1].DenseReluDense = _FeedForward(config)
        self.heads = nn.ModuleList(nn.Linear(config.d_model, width, bias=False) for width in widths)

    def forward(self, inputs: PaddedInputs) -> Tensor:
        """Return the summed loss of the windows."""
        output = self.t5(input_ids=inputs.tokens_WP, attention_mask=inputs.real_WP, decoder_input_ids=inputs.decoder_WL)
        h_WLd = output.last_hidden_state
        return weighted_loss([head(h_WLd[:, level]) for level, head in enumerate(self.heads)], inputs, mean=False)


def weighted_loss(logits: list[Tensor], inputs: PackedInputs | PaddedInputs, mean: bool = True) -> Tensor:
    """Return the cross-entropies of the levels, added up, over windows by weight; per window where `mean`."""
    losses_W = torch.stack(
        [F.cross_entropy(x.float(), inputs.codes_WL[:, n], reduction="none") for n, x in enumerate(logits)]
    ).sum(0)
    total = (losses_W * inputs.weights_W).sum()
    return total / inputs.weights_W.sum() if mean else total
