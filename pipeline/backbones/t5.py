"""`T5` is a T5 encoder-decoder over Semantic IDs (TIGER, Rajput et al. 2023), packed, in the shape that GRID published.

It differs from a textbook T5 (Raffel et al. 2020; the tests compare with the code in `transformers`):
- histories are packed: one long axis of tokens, no padding (packing/histories.py, ops/attention.py);
- the decoder always takes L positions: a start token and the codes of levels 1 .. L-1; position l predicts level l + 1
  with a separate head, without bias, and no end token exists;
- encoder and decoder share one token table: one row per (level, code), a separator, a start token. The separator
  follows each item of a history;
- `recency_items` adds a learned vector for an item's age (0 for the last item of a history, 1 for the one before) to
  the item's tokens. T5 has no position in cross-attention, so the decoder finds the last item only once the encoder has
  learned to mark it;
- `ff_hidden_layers: 2` is GRID's feed-forward, with one more d_ff x d_ff ReLU layer;
- heads are initialised with std d_model^-0.5, as T5X does for untied outputs. `transformers` has std 1, which starts at
  a loss many times that of a uniform guess. The rest is T5's initialisation.

Residuals and norms stay in float32 under autocast. Nothing here waits for the device.

Shape legend: W windows, N items of all histories, T encoder tokens on the packed axis, L levels, V codes of one level,
K beams, H heads, D width of a head, d width of the model; local: S tokens of an item, P positions of an axis (the
decoder's in `forward`, those of one window in `_pad`), R rows of a decoding step (W * K), J earlier levels of a row (of
a bias: and the row's level), O slots of a padded batch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.blocks import DecoderBlock, EncoderBlock, KeysValues, Past, module_list
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.backbones.sid_tokens import SidBackbone
from pipeline.catalogue import Catalogue
from pipeline.ops.compiling import compile_block
from pipeline.ops.dropout import Dropout
from pipeline.ops.gather import gather_unique
from pipeline.ops.layout import Layout
from pipeline.ops.linear import RMSNorm, linear
from pipeline.ops.lookup import LookupTable
from pipeline.packing.histories import Histories
from pipeline.packing.pruning import TokenPruner
from pipeline.packing.shape import capacity_on


@dataclass(frozen=True)
class EncoderOutput:
    """An `EncoderOutput` holds the normed states of the encoder in packed order, and how they fall into windows."""

    states_Td: Tensor
    layout: Layout  # of the encoder's last block
    kept_NS: Tensor | None = None  # bool: the tokens that pruning kept; None: all


@dataclass(frozen=True, kw_only=True)
class T5DecodingState:
    """A `T5DecodingState` holds what decoding needs between two steps. It never changes: a step returns a new one."""

    memory: tuple[KeysValues, ...]  # per layer: keys and values of the encoder's states, one copy per window
    encoder: Layout
    windows: int
    bias_HLL: Tensor  # bias of the decoder's self-attention, of all levels
    past: tuple[Past, ...]  # per layer, per level so far: the decoder's keys and values, [W * K of that level, H, D]
    rows_RJ: Tensor  # int64 [W * K, level - 1]: which row of each earlier level a beam continues
    level: int = 0  # levels decoded so far


class T5(SidBackbone):
    """An encoder reads a history of items; a decoder predicts the codes of the next item, level by level."""

    encoder: Iterable[EncoderBlock]
    decoder: Iterable[DecoderBlock]

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        """Build the network.

        Args:
            vectors_only: build only the encoder, for `read`: no token table, no decoder, no heads.
        """
        super().__init__(config, catalogue)
        self.start = self.separator + 1
        if not vectors_only:
            self._add_tokens(more=2)  # the separator, needed or not, and the start token
        self.recency = LookupTable(config.recency_items, config.d_model) if config.recency_items else None
        self.encoder_bias = RelativeBias(config, bidirectional=True)
        self.encoder = module_list(EncoderBlock(config) for _ in range(config.encoder_layers))
        self.encoder_norm = RMSNorm(config.d_model)
        self.dropout = Dropout(config.dropout)
        if vectors_only:
            self.decoder = ()
            if self.recency is not None:
                self.recency.weight.data.zero_()  # item vectors begin small, and random recency would drown them
        else:
            self._build_decoder()
        self._initialise_as_t5()

    def _build_decoder(self) -> None:
        config = self.config
        self.decoder_bias = RelativeBias(config, bidirectional=False)
        self.decoder = module_list(DecoderBlock(config) for _ in range(config.decoder_layers))
        self.decoder_norm = RMSNorm(config.d_model)
        self._add_heads()

    # -------------------------------------------------------------------------------------------------- training

    def compile_training(self) -> None:
        """Compile the blocks and the norms behind them, at the first training batch and for batches of every size.

        All blocks of a stack share one compilation. Outside of training they run uncompiled.
        """
        for block in (*self.encoder, *self.decoder, self.encoder_norm):
            compile_block(block)
        if self.decoder:
            compile_block(self.decoder_norm)

    def forward(self, histories: Histories, targets_W: Tensor) -> list[Tensor]:
        """Return teacher-forced logits of every level: L tensors [W, V of the level].

        The row of a window means nothing at a level that `histories.decoder_positions` leaves out for the window.

        Args:
            targets_W: int64 item ids in packed order, on the model's device: `targets[histories.order]`.
        """
        decoder_positions = histories.decoder_positions
        windows = len(targets_W)
        levels = self.levels
        encoded = self.encode(histories)
        # The decoder reads a start token and the codes before the last: target a b c -> inputs start, a, b.
        inputs_WL = torch.cat([self._start_WK(windows, 1), self.tokens_IS[targets_W, : levels - 1]], 1)
        # The packed axis of the decoder has L positions of each window, or those of them that are computed.
        inputs_P = inputs_WL.flatten() if decoder_positions is None else inputs_WL.flatten()[decoder_positions.index_P]
        h_Pd = self.dropout(self.tokens(inputs_P))
        if decoder_positions is None:
            layout = Layout.equal(windows, levels, h_Pd.device)
            cross = encoded.layout.cross(layout)
        else:
            layout, cross = decoder_positions.layouts(encoded.layout)
        bias = self.decoder_bias.for_layout(layout, levels)
        states_Td = encoded.states_Td
        if torch.is_autocast_enabled(states_Td.device.type):  # rounded once here, and not again in each layer
            states_Td = states_Td.to(torch.get_autocast_dtype(states_Td.device.type))
        for block in self.decoder:
            h_Pd = _run(block)(h_Pd, layout, bias, block.cross.packed(states_Td), cross)
        h_Pd = self.dropout(_run(self.decoder_norm)(h_Pd))
        # Position l of a window predicts level l + 1 (both from 0).
        if decoder_positions is None:
            h_WLd = torch.unflatten(h_Pd, 0, (windows, levels))
        else:
            h_WLd = decoder_positions.by_level(h_Pd)
        return self._logits_of_levels(h_WLd)

    def kept_tokens(self, histories: Histories, on_prune: Callable[[], None] | None = None) -> Tensor:
        """Return what `Backbone.kept_tokens` says: the tokens that the pruner keeps, or all where there is none."""
        kept_NS = self.encode(histories, prune=True, on_prune=on_prune).kept_NS
        return super().kept_tokens(histories) if kept_NS is None else kept_NS

    def encode(
        self, histories: Histories, *, prune: bool = False, on_prune: Callable[[], None] | None = None
    ) -> EncoderOutput:
        """Run the encoder over all windows.

        Args:
            prune: prune tokens also in evaluation where the pruner says that evaluation does not (`at_eval`).
            on_prune: called just before tokens are pruned.

        Raises:
            ValueError: a padded batch has a window longer than `pad_to`.
        """
        tokens = histories.tokens
        tokens_T = self.tokens_IS[histories.items_N].flatten()
        h_Td = self.tokens(tokens_T if tokens is None else tokens_T[tokens.index_T])
        return self._run_encoder(h_Td, histories, self.tokens_IS.shape[1], self._pruner(prune), on_prune)

    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        """Return what `SidBackbone.read` says, by the encoder alone."""
        encoded = self._run_encoder(vectors_Nd, histories, 1)
        # The last item of each window: lengths 1, 2, 3 -> rows 0, 2, 5
        return encoded.states_Td[histories.lengths_W.cumsum(0) - 1]

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """Return the numbers that a step over `histories` depends on beside the shapes of its tensors."""
        pruner = self._pruner()
        histories = _padded_for(pruner, histories)
        return histories.longest, histories.pad_to, _slots_after(pruner, histories)

    def _pruner(self, prune: bool = False) -> TokenPruner | None:
        """Return the pruner if it prunes now: in training, with `at_eval`, or where `prune` asks for it."""
        return self.pruner if self.pruner and (self.training or prune or self.pruner.at_eval) else None

    def _run_encoder(
        self,
        h_Td: Tensor,
        histories: Histories,
        per_item: int,
        pruner: TokenPruner | None = None,
        on_prune: Callable[[], None] | None = None,
    ) -> EncoderOutput:
        """Run all blocks over inputs in packed order, `per_item` of each item."""
        histories = _padded_for(pruner, histories)
        size = _slots_after(pruner, histories)
        if self.recency is not None:
            h_Td = h_Td + self._recency(self.recency, histories, per_item)
        h_Td, layout, longest = self._lay_out(h_Td, histories, per_item)
        h_Td = self.dropout(h_Td)
        bias: Tensor | None = self.encoder_bias.for_layout(layout, longest)
        kept_NS = None
        for number, block in enumerate(self.encoder, start=1):
            # The block after which tokens are pruned also sums up the attention mass that the pruner asks for.
            prune_here = pruner if pruner and number == pruner.after_layer else None
            h_Td, mass_T = _run(block)(h_Td, layout, bias, prune_here.mass if prune_here else None)
            if prune_here is None:
                continue
            if on_prune is not None:
                on_prune()
            # From here on the axis is shorter. Tokens keep the bias of their positions from before, or none has a bias.
            h_Td, pruned = prune_here(h_Td, mass_T, histories, size=size, training=self.training)
            layout = pruned.layout()
            kept_NS = pruned.kept_NS
            if not prune_here.keep_positions:
                bias = None
        return EncoderOutput(self.dropout(_run(self.encoder_norm)(h_Td)), layout, kept_NS)

    def _recency(self, table: nn.Embedding, histories: Histories, per_item: int) -> Tensor:
        """Return the learned vector of the age of each input's item, [T, d]; all old items share the last vector."""
        oldest = table.num_embeddings - 1
        tokens = histories.tokens
        if tokens is not None:
            vectors_Td: Tensor = table(tokens.age_T.clamp(max=oldest))
            return vectors_Td
        vectors_Nd: Tensor = table(_ages(histories.items_N, histories.lengths_W, oldest))
        return vectors_Nd.repeat_interleave(per_item, 0)

    def _lay_out(self, h_Td: Tensor, histories: Histories, per_item: int) -> tuple[Tensor, Layout, int]:
        """Return the inputs, padded if the histories are; their layout; and a bound of a window's positions."""
        lengths_W = histories.lengths_W * per_item
        longest = histories.longest * per_item
        if histories.tokens is not None:
            return h_Td, histories.tokens.layout(longest), longest
        if not histories.pad_to:
            return h_Td, Layout.packed(lengths_W, longest), longest
        h_Td = _pad(h_Td, self.tokens(self._padding_S()), lengths_W, longest, histories.pad_to)
        return h_Td, Layout.padded(lengths_W, histories.pad_to), histories.pad_to

    def _padding_S(self) -> Tensor:
        """Return the tokens of a padding item as in GRID: code 0 of level 1 at each level, and a true separator."""
        return self.tokens_IS[0].where(self.tokens_IS[0] == self.separator, 0)

    # -------------------------------------------------------------------------------------------------- decoding

    def begin(self, histories: Histories) -> T5DecodingState:
        """Encode the histories once, for all levels and beams."""
        encoded = self.encode(histories)
        return T5DecodingState(
            memory=tuple(block.cross.keys_values(encoded.states_Td) for block in self.decoder),
            encoder=encoded.layout,
            windows=histories.windows,
            bias_HLL=self.decoder_bias(range(self.levels), self.levels),
            past=((),) * self.config.decoder_layers,
            rows_RJ=histories.lengths_W.new_empty(histories.windows, 0),
        )

    def step(
        self,
        state: T5DecodingState,
        beams_WK: Tensor | None = None,
        codes_WK: Tensor | None = None,
    ) -> tuple[Tensor, T5DecodingState]:
        """Return the logits [W, K, V] of the next level and the state after it, as `Backbone.step` says."""
        level = state.level
        rows_RJ = state.rows_RJ
        if beams_WK is None or codes_WK is None:
            tokens_WK = self._start_WK(state.windows, 1)
        else:
            tokens_WK = codes_WK + self.first_token[level - 1]
            rows_RJ = _with_parents(rows_RJ, beams_WK)
        h_Rd = self.tokens(tokens_WK.flatten())
        bias_HJ = state.bias_HLL[:, level, : level + 1]
        new_past = []
        for block, past, memory in zip(self.decoder, state.past, state.memory, strict=True):
            h_Rd, past = block.extend(h_Rd, past, rows_RJ, bias_HJ, memory, state.encoder)
            new_past.append(past)
        logits_WKV = torch.unflatten(self._logits(h_Rd, level, self.decoder_norm), 0, tokens_WK.shape)
        return logits_WKV, replace(state, level=level + 1, past=tuple(new_past), rows_RJ=rows_RJ)

    def _head(self, head: nn.Linear, h_Td: Tensor, norm: RMSNorm | None) -> Tensor:
        return linear(head, h_Td, norm=norm)  # norm and product are one kernel when a GPU decodes

    def _start_WK(self, windows: int, beams: int) -> Tensor:
        return self.tokens_IS.new_full((windows, beams), self.start)


def _run(block: nn.Module) -> Callable[..., Any]:
    """Return what calls the block: compiled in training only, as evaluation would compile again, for other shapes."""
    return block if block.training else block.forward


def _with_parents(rows_RJ: Tensor, beams_WK: Tensor) -> Tensor:
    """Return the ancestors of the beams that go on: the ancestors of each beam's parent, then the parent.

    2 windows, 2 beams each before; beams 1 1 and 0 1 go on -> parents are the rows 1 1 2 3, so that with rows_RJ
    [[0], [0], [1], [1]] the result is [[0, 1], [0, 1], [1, 2], [1, 3]]
    """
    windows = len(beams_WK)
    rows_R = (beams_WK + torch.arange(windows, device=beams_WK.device)[:, None] * (len(rows_RJ) // windows)).flatten()
    return torch.cat([rows_RJ[rows_R], rows_R[:, None]], 1)


def _ages(items_N: Tensor, lengths_W: Tensor, oldest: int) -> Tensor:
    """Return the age of each item, int64 [N]: 0 for the last item of a window, 1 for the one before, up to `oldest`.

    lengths 2, 3; oldest 1 -> 1 0 1 1 0
    """
    ends_W = lengths_W.cumsum(0)
    index_N = torch.arange(len(items_N), device=items_N.device)
    ends_N = ends_W[torch.searchsorted(ends_W, index_N, right=True)]
    return (ends_N - 1 - index_N).clamp_(max=oldest)


def _padded_for(pruner: TokenPruner | None, histories: Histories) -> Histories:
    """Return the histories, padded also where they are packed if padding changes what the pruner keeps."""
    return replace(histories, pad_to=histories.pad_to or pruner.pad_to) if pruner else histories


def _slots_after(pruner: TokenPruner | None, histories: Histories) -> int:
    """Return the slots of all windows after pruning; 0 without a pruner."""
    size = pruner.size(histories.lengths, histories.longest, histories.pad_to) if pruner else 0
    return capacity_on(histories.items_N.device, size)


def _pad(h_Td: Tensor, padding_Sd: Tensor, lengths_W: Tensor, longest: int, pad_to: int) -> Tensor:
    """Spread packed tokens over `pad_to` positions per window. Padding repeats `padding_Sd`, and is no real key.

    Raises:
        ValueError: a window is longer than `pad_to`.
    """
    if longest > pad_to:
        raise ValueError(f"a window of {longest} encoder positions does not fit train.pad_to ({pad_to})")
    tokens = len(h_Td)
    position_P = torch.arange(pad_to, device=h_Td.device)
    first_W = lengths_W.cumsum(0) - lengths_W
    real_WP = position_P < lengths_W[:, None]
    # The source of each slot; padding takes the rows that follow the tokens.
    # lengths 2, 1; pad_to 4; tokens a b | c, padding p q -> sources 0 1 3 4 | 2 4 3 4 in a b c p q
    source_O = torch.where(real_WP, first_W[:, None] + position_P, tokens + position_P % len(padding_Sd)).flatten()
    # The slot of each token, for the gradient: a 0, b 1, c 4. Padding has slot -1 and no gradient: nothing that counts
    # sees padding, so its gradient is zero, and a GPU would take long to add it up slot by slot.
    slot_T = torch.full((tokens + len(padding_Sd),), -1, device=h_Td.device)
    slot_T.scatter_(0, source_O, torch.arange(len(source_O), device=h_Td.device))[tokens:] = -1
    return gather_unique(torch.cat([h_Td, padding_Sd]), source_O, slot_T)
