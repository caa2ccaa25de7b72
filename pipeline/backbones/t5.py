"""T5 encoder-decoder over Semantic IDs (TIGER, Rajput et al. 2023), packed, in the shape that GRID published.

What differs from a textbook T5 (Raffel et al. 2020; `transformers` has the code that the tests compare with):
- histories are packed: one long axis of tokens, no padding (packing/histories.py, ops/attention.py);
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

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.backbones.blocks import DecoderBlock, EncoderBlock, KeysValues, Past
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.backbones.sid_tokens import SidBackbone
from pipeline.catalogue import Catalogue
from pipeline.ops.dropout import Dropout
from pipeline.ops.gather import gather_unique
from pipeline.ops.layout import Layout
from pipeline.ops.linear import RMSNorm, linear
from pipeline.packing.histories import Histories
from pipeline.packing.pruning import TokenPruner
from pipeline.packing.shape import capacity_on


@dataclass(frozen=True)
class EncoderOutput:
    """Encoder output: normed states [T, d] in packed order and how they fall into windows."""

    states_Td: Tensor
    layout: Layout  # of the encoder's last block
    kept_NS: Tensor | None = None  # of each item's tokens, which are still there; None: all


@dataclass(frozen=True, kw_only=True)
class T5DecodingState:
    """What the next step of incremental decoding needs. Never changed: a step returns a new one."""

    memory: tuple[KeysValues, ...]  # per layer: the encoder's keys and values, one copy per window
    encoder: Layout
    windows: int
    bias_HLL: Tensor  # the decoder's, of all levels
    past: tuple[Past, ...]  # per layer, per level decoded so far: the decoder's own, [W * K of that level, H, D]
    rows_RJ: Tensor  # int64 [W * K, level - 1]: which row of each earlier level a beam continues
    level: int = 0  # levels decoded so far


class T5(SidBackbone):
    """Next-item model: a history of items in, logits over the codes of each level of the next item out."""

    encoder: Iterable[EncoderBlock]
    decoder: Iterable[DecoderBlock]

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        """
        Args:
            vectors_only: only the encoder, for `read`: no token table, no decoder, no heads.
        """
        super().__init__(config, catalogue)
        self.start = self.separator + 1
        if not vectors_only:
            self._add_tokens(more=2)  # the separator, needed or not, and the start token
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
        self._initialise_as_t5()

    def _build_decoder(self) -> None:
        config = self.config
        self.decoder_bias = RelativeBias(config, bidirectional=False)
        self.decoder = cast(
            Iterable[DecoderBlock], nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_layers))
        )
        self.decoder_norm = RMSNorm(config.d_model)
        self._add_heads()

    # -------------------------------------------------------------------------------------------------- training

    def compile_training(self) -> None:
        """Compile the blocks, at the first training batch and for batches of every size. All blocks of a stack share
        one compilation; outside of training they run as they are.
        """
        for block in (*self.encoder, *self.decoder):
            block.compile(dynamic=True)

    def forward(self, histories: Histories, targets_W: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every level: L tensors [W, V of the level]. Where
        `histories.decoder_positions` leave a position out, its row means nothing.

        Args:
            targets_W: int64 item ids in packed order, on the model's device: `targets[histories.order]`.
        """
        decoder_positions, windows, levels = histories.decoder_positions, len(targets_W), self.levels
        encoded = self.encode(histories)
        inputs_WL = torch.cat([self._start_WK(windows, 1), self.tokens_IS[targets_W, : levels - 1]], 1)
        inputs_P = inputs_WL.flatten() if decoder_positions is None else inputs_WL.flatten()[decoder_positions.index_P]
        h_Td = self.dropout(self.tokens(inputs_P))
        if decoder_positions is None:
            layout = Layout.equal(windows, levels, h_Td.device)
            cross = encoded.layout.cross(layout)
        else:
            layout, cross = decoder_positions.layouts(encoded.layout)
        bias = self.decoder_bias.for_layout(layout, levels)
        states_Td = encoded.states_Td
        if torch.is_autocast_enabled(states_Td.device.type):  # once, and not for each layer
            states_Td = states_Td.to(torch.get_autocast_dtype(states_Td.device.type))
        for block in self.decoder:
            h_Td = _run(block)(h_Td, layout, bias, block.cross.packed(states_Td), cross)
        h_Td = self.dropout(self.decoder_norm(h_Td))
        h_WLd = h_Td.unflatten(0, (windows, levels)) if decoder_positions is None else decoder_positions.by_level(h_Td)
        return [self._logits(h_WLd[:, level], level) for level in range(levels)]

    def kept_tokens(self, histories: Histories, on_prune: Callable[[], None] | None = None) -> Tensor:
        kept_NS = self.encode(histories, prune=True, on_prune=on_prune).kept_NS
        return super().kept_tokens(histories) if kept_NS is None else kept_NS

    def encode(
        self, histories: Histories, *, prune: bool = False, on_prune: Callable[[], None] | None = None
    ) -> EncoderOutput:
        """Run the encoder over all windows.

        Args:
            prune: let the strategy prune tokens as in training, also where it does not in evaluation.
            on_prune: called where it does, just before.

        Raises:
            ValueError: a padded batch has a window longer than `pad_to`.
        """
        tokens = histories.tokens
        tokens_T = self.tokens_IS[histories.items_N].flatten()
        h_Td = self.tokens(tokens_T if tokens is None else tokens_T[tokens.index_T])
        return self._run_encoder(h_Td, histories, self.tokens_IS.shape[1], self._pruner(prune), on_prune)

    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        encoded = self._run_encoder(vectors_Nd, histories, 1)
        return encoded.states_Td[histories.lengths_W.cumsum(0) - 1]

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        pruner = self._pruner()
        histories = _padded_for(pruner, histories)
        return histories.longest, histories.pad_to, _slots_after(pruner, histories)

    def _pruner(self, prune: bool = False) -> TokenPruner | None:
        """What prunes tokens in this pass."""
        return self.pruner if self.pruner and (self.training or prune or self.pruner.at_eval) else None

    def _run_encoder(
        self,
        h_Td: Tensor,
        histories: Histories,
        per_item: int,
        pruner: TokenPruner | None = None,
        on_prune: Callable[[], None] | None = None,
    ) -> EncoderOutput:
        """All blocks over inputs in packed order, `per_item` of each item."""
        histories = _padded_for(pruner, histories)
        size = _slots_after(pruner, histories)
        if self.recency is not None:
            h_Td = h_Td + self._recency(histories, per_item)
        h_Td, layout, longest = self._lay_out(h_Td, histories, per_item)
        h_Td = self.dropout(h_Td)
        bias: Tensor | None = self.encoder_bias.for_layout(layout, longest)
        kept_NS = None
        for number, block in enumerate(self.encoder, start=1):
            here = pruner if pruner and number == pruner.after_layer else None
            h_Td, mass_T = _run(block)(h_Td, layout, bias, here.mass if here else None)
            if here is None:
                continue
            if on_prune is not None:
                on_prune()
            h_Td, pruned = here(h_Td, mass_T, histories, size=size, training=self.training)
            layout, kept_NS = pruned.layout(), pruned.kept_NS
            if not here.keep_positions:
                bias = None
        return EncoderOutput(self.dropout(self.encoder_norm(h_Td)), layout, kept_NS)

    def _recency(self, histories: Histories, per_item: int) -> Tensor:
        """The learned vector of each input's place in line, counted from the last item: [T, d]."""
        assert self.recency is not None
        ages, tokens = self.recency.num_embeddings, histories.tokens
        if tokens is not None:
            return self.recency(tokens.age_T.clamp(max=ages - 1))
        ages_N = _ages(histories.items_N, histories.lengths_W, ages)
        return self.recency(ages_N).repeat_interleave(per_item, 0)

    def _lay_out(self, h_Td: Tensor, histories: Histories, per_item: int) -> tuple[Tensor, Layout, int]:
        """(the inputs, padded where the histories are; their layout; a bound of a window's positions)."""
        lengths_W, longest = histories.lengths_W * per_item, histories.longest * per_item
        if histories.tokens is not None:
            return h_Td, histories.tokens.layout(longest), longest
        if not histories.pad_to:
            return h_Td, Layout.packed(lengths_W, longest), longest
        h_Td = _pad(h_Td, self.tokens(self._padding_S()), lengths_W, longest, histories.pad_to)
        return h_Td, Layout.padded(lengths_W, histories.pad_to), histories.pad_to

    def _padding_S(self) -> Tensor:
        """GRID's padding: items of the first token of all, with a true separator."""
        return self.tokens_IS[0].where(self.tokens_IS[0] == self.separator, 0)

    # -------------------------------------------------------------------------------------------------- decoding

    def begin(self, histories: Histories) -> T5DecodingState:
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
        level, windows, rows_RJ = state.level, state.windows, state.rows_RJ
        if beams_WK is None or codes_WK is None:
            tokens_WK = self._start_WK(windows, 1)
        else:
            tokens_WK = codes_WK + self.first_token[level - 1]
            rows_RJ = _with_parents(rows_RJ, beams_WK)
        h_Rd = self.tokens(tokens_WK.flatten())
        bias_HJ = state.bias_HLL[:, level, : level + 1]
        new_past = []
        for block, past, memory in zip(self.decoder, state.past, state.memory, strict=True):
            h_Rd, past = block.extend(h_Rd, past, rows_RJ, bias_HJ, memory, state.encoder)
            new_past.append(past)
        logits_WKV = self._logits(h_Rd, level, self.decoder_norm).unflatten(0, tokens_WK.shape)
        return logits_WKV, replace(state, level=level + 1, past=tuple(new_past), rows_RJ=rows_RJ)

    def _head(self, head: nn.Linear, h_Td: Tensor, norm: RMSNorm | None) -> Tensor:
        return linear(head, h_Td, norm=norm)  # one kernel where a GPU only reads the model

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


def _ages(items_N: Tensor, lengths_W: Tensor, ages: int) -> Tensor:
    """int64 [N]: 0 for the last item of each window, 1 for the one before; all beyond `ages` share the last."""
    ends_W, position_N = lengths_W.cumsum(0), torch.arange(len(items_N), device=items_N.device)
    ends_N = ends_W[torch.searchsorted(ends_W, position_N, right=True)]
    return (ends_N - 1 - position_N).clamp_(max=ages - 1)


def _padded_for(pruner: TokenPruner | None, histories: Histories) -> Histories:
    """The same histories; where padding matters to what prunes them, packed ones are padded too."""
    return replace(histories, pad_to=histories.pad_to or pruner.pad_to) if pruner else histories


def _slots_after(pruner: TokenPruner | None, histories: Histories) -> int:
    """Places that the pruner leaves, of all windows; 0: there is none."""
    size = pruner.size(histories.lengths, histories.longest, histories.pad_to) if pruner else 0
    return capacity_on(histories.items_N.device, size)


def _pad(h_Td: Tensor, padding_Sd: Tensor, lengths_W: Tensor, longest: int, pad_to: int) -> Tensor:
    """Packed tokens -> `pad_to` positions per window. Padding repeats `padding_Sd`; as a key it is to be masked."""
    if longest > pad_to:
        raise ValueError(f"a window of {longest} encoder positions does not fit train.pad_to ({pad_to})")
    tokens, position_P = len(h_Td), torch.arange(pad_to, device=h_Td.device)
    first_W, real_WP = lengths_W.cumsum(0) - lengths_W, position_P < lengths_W[:, None]
    source_WP = torch.where(real_WP, first_W[:, None] + position_P, tokens + position_P % len(padding_Sd))
    # Nothing that counts sees padding, so its gradient is zero; to add that up, place by place, would take a GPU long.
    slot_T = torch.full((tokens + len(padding_Sd),), -1, device=h_Td.device)
    slot_T.scatter_(0, source_WP.flatten(), torch.arange(real_WP.numel(), device=h_Td.device))[tokens:] = -1
    return gather_unique(torch.cat([h_Td, padding_Sd]), source_WP.flatten(), slot_T)
