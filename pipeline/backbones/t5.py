"""T5 encoder-decoder over Semantic IDs (TIGER, Rajput et al. 2023), packed, in the shape that GRID published.

What differs from a textbook T5 (Raffel et al. 2020; `transformers` has the code that the tests compare with):
- histories are packed: one long axis of tokens, no padding (attention.py, histories.py);
- the decoder always takes L positions: a start token and the codes of levels 1 .. L-1; position l predicts level l + 1
  with a head of its own, without bias, and no end token exists;
- encoder and decoder share one token table: one row per (level, code), a separator, a start token. The separator
  follows each item of a history;
- `recency_items` adds a learned vector per place in line, counted from the last item, to the tokens of an item. T5 has
  no position in cross-attention, so the decoder finds the last item only once the encoder has learned to mark it;
- `ff_hidden_layers: 2` is GRID's feed-forward, with one more d_ff x d_ff ReLU layer;
- heads are initialised with std d_model^-0.5, as T5X does for untied outputs. `transformers` has std 1, which starts at
  a loss many times that of a uniform guess. The rest is T5's own initialisation.

Residuals and norms stay in float32 under autocast. Nothing here waits for the device.

Shape legend: W windows, N items, T encoder tokens, d model width, H heads, D head width, L code levels, K beams,
R rows of a decoding step (W * K), J levels before it (and its own, of a bias), V codes of one level.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.blocks import (
    CrossAttention,
    DecoderBlock,
    EncoderBlock,
    KeysValues,
    Past,
    RMSNorm,
    SelfAttention,
    linear,
)
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.catalogue import Catalogue
from pipeline.ops.dropout import Dropout
from pipeline.ops.gather import gather_unique
from pipeline.ops.layout import Group, Layout
from pipeline.packing.histories import Histories
from pipeline.packing.pruning import Packed, TokenPruner
from pipeline.packing.shape import roomy


@dataclass(frozen=True)
class Encoded:
    """Encoder output: normed states [T, d] in packed order and how they fall into windows."""

    states_Td: Tensor
    layout: Layout  # of the encoder's last block
    kept_NS: Tensor | None = None  # of each item's tokens, which are still there; None: all


@dataclass(frozen=True)
class Decoding:
    """What the next step of incremental decoding needs. Never changed: a step returns a new one."""

    memory: tuple[KeysValues, ...]  # per layer: the encoder's keys and values, one copy per window
    encoder: Layout
    windows: int
    bias_HLL: Tensor  # the decoder's, of all levels
    past: tuple[Past, ...]  # per layer, per level decoded so far: the decoder's own, [W * K of that level, H, D]
    rows_RJ: Tensor  # int64 [W * K, level - 1]: which row of each earlier level a beam continues
    level: int = 0  # levels decoded so far


class T5(nn.Module):
    """Next-item model: a history of items in, logits over the codes of each level of the next item out."""

    wants_times = False
    tokens_IS: Tensor  # int64: the token ids of each item in a history, separator included
    encoder: Iterable[EncoderBlock]
    decoder: Iterable[DecoderBlock]
    heads: Sequence[nn.Linear]

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        """
        Args:
            vectors_only: only the encoder, for `read`: no token table, no decoder, no heads.
        """
        super().__init__()
        self.config, self.catalogue = config, catalogue
        self.shortener: TokenPruner | None = None  # set by a strategy
        self.levels = catalogue.levels
        self.first_token = [sum(catalogue.widths[:level]) for level in range(self.levels)]  # of each level
        self.separator = sum(catalogue.widths)
        self.start = self.separator + 1
        if not vectors_only:
            self.tokens = nn.Embedding(self.start + 1, config.d_model)
        self.recency = nn.Embedding(config.recency_items, config.d_model) if config.recency_items else None
        self.encoder_bias = RelativeBias(config, bidirectional=True)
        self.encoder = cast(
            Iterable[EncoderBlock], nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_layers))
        )
        self.encoder_norm = RMSNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        if vectors_only:
            self.decoder = ()
            if self.recency is not None:
                self.recency.weight.data.zero_()  # it must not drown vectors that begin small
        else:
            self._build_decoder()
            self._register_tokens()
        self._initialise()

    def _build_decoder(self) -> None:
        config = self.config
        self.decoder_bias = RelativeBias(config, bidirectional=False)
        self.decoder = cast(
            Iterable[DecoderBlock], nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        )
        self.decoder_norm = RMSNorm(config.d_model)
        self.heads = cast(
            Sequence[nn.Linear],
            nn.ModuleList(nn.Linear(config.d_model, width, bias=False) for width in self.catalogue.widths),
        )

    def _register_tokens(self) -> None:
        tokens_IL = self.catalogue.codes_IL + torch.tensor(self.first_token, device=self.catalogue.codes_IL.device)
        parts = [tokens_IL]
        if self.config.separators:
            parts.append(torch.full_like(tokens_IL[:, :1], self.separator))
        self.register_buffer("tokens_IS", torch.cat(parts, 1), persistent=False)

    @torch.no_grad()
    def _initialise(self) -> None:
        """T5's: normal with std fan_in^-0.5, but queries (d_model * d_head)^-0.5 for want of scaling; embeddings as
        `embedding_std` says, which T5 has at 1.
        """
        for table in self.modules():
            if isinstance(table, nn.Embedding):  # drawn with std 1
                table.weight.mul_(self.config.embedding_std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(std=module.in_features**-0.5)
        queries = (self.config.d_model * self.config.d_head) ** -0.5
        inner = self.config.heads * self.config.d_head
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.qkv.weight[:inner].normal_(std=queries)
            elif isinstance(module, CrossAttention):
                module.q.weight.normal_(std=queries)

    # -------------------------------------------------------------------------------------------------- training

    def compile_training(self) -> None:
        """Compile the blocks, at the first training batch and for batches of every size. All blocks of a stack share
        one compilation; outside of training they run as they are.
        """
        for block in (*self.encoder, *self.decoder):
            block.compile(dynamic=True)

    def forward(self, histories: Histories, targets_W: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every level: L tensors [W, V of the level]. Where `histories.prefixes` leave a
        position out, its row means nothing.

        Args:
            targets_W: int64 item ids in packed order, on the model's device: `targets[histories.order]`.
        """
        prefixes = histories.prefixes
        windows, levels = len(targets_W), self.levels
        encoded = self.encode(histories)
        inputs_WL = torch.cat([self._start_WK(windows, 1), self.tokens_IS[targets_W, : levels - 1]], 1)
        inputs_P = inputs_WL.flatten() if prefixes is None else inputs_WL.flatten()[prefixes.place_P]
        h_Td = self.dropout(self.tokens(inputs_P))
        layout, cross = (
            prefixes.layouts(encoded.layout)
            if prefixes is not None
            else (_equal_layout(encoded.layout, windows, levels), _cross_layout(encoded.layout, levels))
        )
        bias = (
            self.decoder_bias(range(levels), levels) if layout.spans is None else self.decoder_bias.by_distance(levels)
        )
        states_Td = encoded.states_Td
        if torch.is_autocast_enabled(states_Td.device.type):  # once, and not for each layer
            states_Td = states_Td.to(torch.get_autocast_dtype(states_Td.device.type))
        for block in self.decoder:
            h_Td = _run(block)(h_Td, layout, bias, block.cross.packed(states_Td), cross)
        h_Td = self.dropout(self.decoder_norm(h_Td))
        h_WLd = h_Td.unflatten(0, (windows, levels)) if prefixes is None else prefixes.by_level(h_Td)
        return [self._logits(h_WLd[:, level], level) for level in range(levels)]

    @property
    def token_names(self) -> list[str]:
        """Names of an item's tokens in a history."""
        return [f"level {level + 1}" for level in range(self.levels)] + ["separator"] * self.config.separators

    def kept_tokens(self, histories: Histories) -> Tensor:
        """bool [N, S]: which tokens of each item of the histories the last encoder block sees when the model trains."""
        kept_NS = self.encode(histories, shorten=True).kept_NS
        return torch.ones_like(self.tokens_IS[histories.items_N], dtype=torch.bool) if kept_NS is None else kept_NS

    def encode(self, histories: Histories, shorten: bool = False) -> Encoded:
        """Run the encoder over all windows.

        Args:
            shorten: let the strategy shorten the sequences as in training, also where it does not in evaluation.

        Raises:
            ValueError: a padded batch has a window longer than `pad_to`.
        """
        shortener = self._shortener(shorten)
        return self._encode(self._packed(histories, shortener), shortener)

    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        """The state [W, d] of the last item of each window, rows in packed order.

        Args:
            vectors_Nd: one input per item of the histories, in packed order, instead of tokens.
        """
        encoded = self._run_encoder(vectors_Nd, self._packed(histories, None), 1, None)
        return encoded.states_Td[histories.lengths_W.cumsum(0) - 1]

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """The numbers that, beside the shapes of its tensors, a training step over `histories` depends on."""
        packed = self._packed(histories, self._shortener())
        return packed.longest, packed.pad_to, packed.size

    def _packed(self, histories: Histories, shortener: TokenPruner | None) -> Packed:
        pad_to = histories.pad_to or (shortener.pad_to if shortener else 0)
        size = shortener.size(histories.lengths, histories.longest, pad_to) if shortener else 0
        return Packed(
            histories.items_N,
            histories.lengths_W,
            histories.groups,
            histories.longest,
            pad_to,
            roomy(size) if histories.items_N.is_cuda else size,
            histories.tokens,
        )

    def _shortener(self, shorten: bool = False) -> TokenPruner | None:
        """What shortens this pass."""
        return self.shortener if self.shortener and (self.training or shorten or self.shortener.at_eval) else None

    def _encode(self, packed: Packed, shortener: TokenPruner | None) -> Encoded:
        per_item, tokens = self.tokens_IS.shape[1], packed.tokens
        tokens_T = self.tokens_IS[packed.items_N].flatten()
        h_Td = self.tokens(tokens_T if tokens is None else tokens_T[tokens.place_T])
        return self._run_encoder(h_Td, packed, per_item, shortener)

    def _run_encoder(self, h_Td: Tensor, packed: Packed, per_item: int, shortener: TokenPruner | None) -> Encoded:
        """All blocks over inputs in packed order, `per_item` of each item."""
        tokens = packed.tokens
        if self.recency is not None:
            places = self.recency.num_embeddings
            if tokens is None:
                places_N = _places(packed.items_N, packed.lengths_W, places)
                h_Td = h_Td + self.recency(places_N).repeat_interleave(per_item, 0)
            else:
                h_Td = h_Td + self.recency(tokens.age_T.clamp(max=places - 1))
        lengths_W, longest = packed.lengths_W * per_item, packed.longest * per_item
        if tokens is not None:
            layout = tokens.layout(longest)
        elif packed.pad_to:
            h_Td, layout = _pad(h_Td, self.tokens(self._padding_S()), lengths_W, longest, packed.pad_to)
            longest = packed.pad_to
        elif h_Td.is_cuda:
            layout = _packed_spans(lengths_W, longest)
        else:
            layout = Layout(
                tuple(Group(windows, items * per_item, items * per_item) for windows, items in packed.groups)
            )
        h_Td = self.dropout(h_Td)
        bias: Tensor | None = (
            self.encoder_bias(range(longest), longest)
            if layout.spans is None
            else self.encoder_bias.by_distance(longest)
        )
        kept_NS = None
        for number, block in enumerate(self.encoder, start=1):
            here = shortener if shortener and number == shortener.after_layer else None
            h_Td, mass_T = _run(block)(h_Td, layout, bias, here.mass if here else None)
            if here is None:
                continue
            shortened = here(h_Td, mass_T, packed, self.training)
            h_Td, layout, kept_NS = shortened.h_Td, shortened.layout, shortened.kept_NS
            if not here.keep_positions:
                bias = None
        return Encoded(self.dropout(self.encoder_norm(h_Td)), layout, kept_NS)

    def _padding_S(self) -> Tensor:
        """GRID's padding: items of the first token of all, with a true separator."""
        return self.tokens_IS[0].where(self.tokens_IS[0] == self.separator, 0)

    # -------------------------------------------------------------------------------------------------- decoding

    def begin(self, histories: Histories) -> Decoding:
        """Encode once, for all levels and beams."""
        encoded = self.encode(histories)
        memory = tuple(block.cross.keys_values(encoded.states_Td) for block in self.decoder)
        return Decoding(
            memory,
            encoded.layout,
            histories.windows,
            self.decoder_bias(range(self.levels), self.levels),
            ((),) * self.config.decoder_layers,
            histories.lengths_W.new_empty(histories.windows, 0),
        )

    def step(
        self,
        state: Decoding,
        beams_WK: Tensor | None = None,
        codes_WK: Tensor | None = None,
    ) -> tuple[Tensor, Decoding]:
        """Logits [W, K, V] of the next level, rows in packed order. The first step takes no beams: K is 1.

        Args:
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that it appends.
        """
        level, windows, rows_RJ = state.level, state.windows, state.rows_RJ
        if beams_WK is None or codes_WK is None:
            tokens_WK = self._start_WK(windows, 1)
        else:
            tokens_WK = codes_WK + self.first_token[level - 1]
            rows_RJ = _with_parents(rows_RJ, beams_WK)
        h_Rd = self.tokens(tokens_WK.flatten())
        bias_HJ = state.bias_HLL[:, level, : level + 1]
        kept = []
        for block, past, memory in zip(self.decoder, state.past, state.memory, strict=True):
            h_Rd, past = block.extend(h_Rd, past, rows_RJ, bias_HJ, memory, state.encoder)
            kept.append(past)
        logits_WKV = self._logits(h_Rd, level, self.decoder_norm).unflatten(0, tokens_WK.shape)
        return logits_WKV, replace(state, level=level + 1, past=tuple(kept), rows_RJ=rows_RJ)

    def _logits(self, h_Td: Tensor, level: int, norm: RMSNorm | None = None) -> Tensor:
        """In float32 even under autocast: rounded to bfloat16, near codes would tie."""
        with torch.autocast(h_Td.device.type, enabled=False):
            return linear(self.heads[level], h_Td.to(self.tokens.weight.dtype), norm=norm)

    def _start_WK(self, windows: int, beams: int) -> Tensor:
        return self.tokens_IS.new_full((windows, beams), self.start)


def _run(block: nn.Module) -> Callable[..., Any]:
    """Only training runs what is compiled: evaluation would compile once more, for shapes of its own."""
    return block if block.training else block.forward


def _with_parents(rows_RJ: Tensor, beams_WK: Tensor) -> Tensor:
    """The ancestors of the beams that go on: those of the beam that each continues, and that beam itself."""
    windows = len(beams_WK)
    rows_R = (beams_WK + torch.arange(windows, device=beams_WK.device)[:, None] * (len(rows_RJ) // windows)).flatten()
    return torch.cat([rows_RJ[rows_R], rows_R[:, None]], 1)


def _places(items_N: Tensor, lengths_W: Tensor, places: int) -> Tensor:
    """int64 [N]: 0 for the last item of each window, 1 for the one before; all beyond `places` share the last."""
    ends_W, place_N = lengths_W.cumsum(0), torch.arange(len(items_N), device=items_N.device)
    ends_N = ends_W[torch.searchsorted(ends_W, place_N, right=True)]
    return (ends_N - 1 - place_N).clamp_(max=places - 1)


def _packed_spans(lengths_W: Tensor, longest: int) -> Layout:
    from pipeline.ops.layout import make_spans

    starts = F.pad(lengths_W.cumsum(0), (1, 0))
    return Layout(spans=make_spans(starts, starts, lengths_W, longest, longest))


def _equal_layout(encoder: Layout, sequences: int, length: int) -> Layout:
    """`length` decoder positions of each window, against themselves."""
    if encoder.spans is None:
        return Layout((Group(sequences, length, length),))
    from pipeline.ops.layout import make_spans

    starts = torch.arange(sequences + 1, device=encoder.spans.starts_k.device) * length
    return Layout(spans=make_spans(starts, starts, starts.diff(), length, length))


def _cross_layout(encoder: Layout, queries: int) -> Layout:
    """`queries` decoder positions of each window, against the encoder's positions of the window."""
    if (own := encoder.spans) is None:
        return encoder.with_queries(queries)
    from pipeline.ops.layout import make_spans

    starts = torch.arange(len(own.starts_k), device=own.starts_k.device) * queries
    return Layout(spans=make_spans(starts, own.starts_k, own.lengths_k, queries, own.longest_k, own.rooms_k))


def _pad(h_Td: Tensor, padding_Sd: Tensor, lengths_W: Tensor, longest: int, pad_to: int) -> tuple[Tensor, Layout]:
    """Packed tokens -> `pad_to` positions per window. Padding repeats `padding_Sd`, and is masked as a key."""
    if longest > pad_to:
        raise ValueError(f"a window of {longest} encoder positions does not fit train.pad_to ({pad_to})")
    windows, tokens, position_P = len(lengths_W), len(h_Td), torch.arange(pad_to, device=h_Td.device)
    first_W, real_WP = lengths_W.cumsum(0) - lengths_W, position_P < lengths_W[:, None]
    source_WP = torch.where(real_WP, first_W[:, None] + position_P, tokens + position_P % len(padding_Sd))
    # Nothing that counts sees padding, so its gradient is zero; to add that up, place by place, would take a GPU long.
    place_T = torch.full((tokens + len(padding_Sd),), -1, device=h_Td.device)
    place_T.scatter_(0, source_WP.flatten(), torch.arange(real_WP.numel(), device=h_Td.device))[tokens:] = -1
    h_Td = gather_unique(torch.cat([h_Td, padding_Sd]), source_WP.flatten(), place_T)
    if not h_Td.is_cuda:
        return h_Td, Layout((Group(windows, pad_to, pad_to),), lengths_W)
    from pipeline.ops.layout import make_spans

    starts = torch.arange(windows + 1, device=h_Td.device) * pad_to
    return h_Td, Layout(spans=make_spans(starts, starts, lengths_W, pad_to, pad_to))
