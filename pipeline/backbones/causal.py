"""What the causal backbones share: from histories to logits and back, around a stack of blocks.

A window is one sequence of tokens (packing/sequences.py), none of which sees a later one. In training the logits of a
target are read at the last token of the history and at the target's codes; with `Histories.all_targets`, at every item:
each one is the target of the items before it, all in one pass. In decoding the history is read once, its keys and
values are kept once per window, and each beam adds the few of its own codes.

`read` takes one vector per item instead of codes, and returns the states behind them.

Shape legend: W windows, N items, T tokens of all sequences, R rows that are read, S tokens of an item, L code levels, d
model width, H heads, D head width, K beams, P history places of the longest window, J own tokens of a beam, V codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones.blocks import KeysValues
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.backbones.sid_tokens import SidBackbone
from pipeline.catalogue import Catalogue
from pipeline.ops.dropout import Dropout
from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import Times
from pipeline.packing.histories import Histories
from pipeline.packing.sequences import Sequences, lay_out, times_of


class CausalBlock(nn.Module, ABC):
    """One layer. What `project` returns as the gate, `finish` gets back after attention (HSTU's U, T5's input)."""

    def forward(self, h_Td: Tensor, layout: Layout, bias: Tensor, rows_R: Tensor | None = None) -> Tensor:
        """The layer's output, [T, d]; or of some rows alone, [R, d], where no one reads the others."""
        return self.forward_with_memory(h_Td, layout, bias, rows_R)[0]

    def forward_with_memory(
        self, h_Td: Tensor, layout: Layout, bias: Tensor, rows_R: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """As `forward`, and the keys and values of all tokens, [T, H, D] each."""
        q_THD, k_THD, v_THD, gate = self.project(h_Td)
        mixed_THD = self.attend(q_THD, k_THD, v_THD, layout, bias)
        if rows_R is not None:
            h_Td, mixed_THD, gate = (x.index_select(0, rows_R) for x in (h_Td, mixed_THD, gate))
        return self.finish(h_Td, mixed_THD, gate), (k_THD, v_THD)

    @abstractmethod
    def project(self, h_Td: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys, values [T, H, D] and the gate [T, ...]."""

    @abstractmethod
    def attend(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        """Attention of every token to itself and those before it in its sequence, [T, H, D]."""

    @abstractmethod
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Attention weights from biased scores over all keys of a query (the last axis), 0 where `seen` is False."""

    @abstractmethod
    def finish(self, h_Td: Tensor, mixed_THD: Tensor, gate: Tensor) -> Tensor:
        """The layer's output from its input and what attention brought."""

    def bias_of_times(self, elapsed: Tensor) -> Tensor:
        """The bias for times in seconds [...], [..., H]. A layer that knows no times adds nothing, [..., 1]."""
        return torch.zeros((*elapsed.shape, 1), device=elapsed.device)


@dataclass(frozen=True, kw_only=True)
class CausalDecodingState:
    """What the next step of incremental decoding needs. Never changed: a step returns a new one.

    Histories are kept with their last tokens aligned, so that a distance is a difference of columns.
    """

    states_Wd: Tensor  # behind each history
    memory: tuple[KeysValues, ...]  # per layer: keys and values of the history [W, H, P, D], one copy per window
    seen_WP: Tensor  # bool: where the history is
    elapsed_WP: Tensor | None  # int64: seconds from each of its tokens to its end; for a backbone that wants times
    level: int = 0  # levels decoded so far
    past: tuple[KeysValues, ...] = ()  # per layer: the beams' own [W, K, H, J, D]


class CausalBackbone(SidBackbone):
    """A stack of causal blocks over packed sequences; subclasses bring the blocks.

    Args:
        vectors_only: for `read` alone: no tokens and no heads.
    """

    blocks: Iterable[CausalBlock]
    norm: nn.Module

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        super().__init__(config, catalogue)
        self.dropout = Dropout(config.dropout)
        if not vectors_only:
            self._add_tokens(int(config.separators))
            self._add_heads()
            for head in self.heads:
                nn.init.normal_(head.weight, std=config.d_model**-0.5)

    # ------------------------------------------------------------------------------------------ of the subclass

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Input vectors of token ids, [T, d]."""
        return self.tokens(tokens_T)

    @abstractmethod
    def position_bias(self, block: Any) -> RelativeBias:
        """The block's bias of relative positions."""

    # ------------------------------------------------------------------------------------------ training

    def compile_training(self) -> None:
        """Compile the blocks, at the first training batch and for batches of every size. All of them share one
        compilation; outside of training they run as they are.
        """
        for block in self.blocks:
            block.compile(dynamic=True)

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """The numbers that, beside the shapes of its tensors, a training step over `histories` depends on."""
        return histories.longest, histories.pad_to, histories.all_targets

    def forward(self, histories: Histories, targets_W: Tensor) -> list[Tensor]:
        """Teacher-forced logits of every level: L tensors [W, V of the level], or [N, V] with `all_targets`: of what
        follows each item.

        Args:
            targets_W: int64 item ids in packed order, on the model's device: `targets[histories.order]`.
        """
        fed = self.levels - 1
        sequences = lay_out(histories, self.tokens_IS.shape[1], fed)
        tokens = torch.cat([self.tokens_IS[histories.items_N].flatten(), self.tokens_IS[targets_W, :fed].flatten()])
        h_Td = self.embed(tokens[sequences.source_T])
        rows_RL = _read_rows(histories, sequences)[:, None] + torch.arange(self.levels, device=h_Td.device)
        rows_RL = rows_RL.clamp_(max=len(h_Td) - 1)  # of items of no window
        times = self._times(histories, sequences, self.levels)
        states_RLd = self._stack(h_Td, sequences, times, rows_RL.flatten()).unflatten(0, rows_RL.shape)
        return [self._logits(states_RLd[:, level], level) for level in range(self.levels)]

    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        """As `SidBackbone.read`; with `all_targets` [N, d], behind every item."""
        sequences = lay_out(histories, 1, 0)
        times = self._times(histories, sequences, 1)
        if histories.pad_to:
            vectors_Nd = vectors_Nd.index_select(0, sequences.source_T)
        return self._stack(vectors_Nd, sequences, times, _read_rows(histories, sequences))

    def _stack(
        self,
        h_Td: Tensor,
        sequences: Sequences,
        times: Times | None,
        rows_R: Tensor,
        memory: list[KeysValues] | None = None,
    ) -> Tensor:
        """All blocks; normed states [R, d] of the rows that are read. `kept` takes each layer's keys and values."""
        h_Td, layout = self.dropout(h_Td), sequences.layout(times)
        biases: dict[RelativeBias, Tensor] = {}  # blocks may share one
        for number, block in enumerate(self.blocks, start=1):
            table = self.position_bias(block)
            if table not in biases:
                biases[table] = table.for_layout(layout, sequences.longest)
            rows = rows_R if number == self.config.decoder_layers else None  # what no one reads is not computed
            if memory is None:  # only training runs what is compiled
                h_Td = (block if self.training else block.forward)(h_Td, layout, biases[table], rows)
            else:
                h_Td, keys_values = block.forward_with_memory(h_Td, layout, biases[table], rows)
                memory.append(keys_values)
        return self.norm(h_Td)

    def _times(self, histories: Histories, sequences: Sequences, levels: int) -> Times | None:
        if not self.wants_times:
            return None
        if histories.times_N is None:
            raise ValueError("this backbone reads times: pack histories with times_N, or set backbone.time_bias false")
        return times_of(histories.times_N, histories.lengths_W, sequences, levels)

    # ------------------------------------------------------------------------------------------ decoding

    def begin(self, histories: Histories) -> CausalDecodingState:
        """Read the histories once, for all levels and beams."""
        tokens, per_item = list[KeysValues](), self.tokens_IS.shape[1]
        sequences = lay_out(histories, per_item, 0)
        times = self._times(histories, sequences, self.levels)
        tokens_T = self.tokens_IS[histories.items_N].flatten()[sequences.source_T]
        last_W = sequences.last_rows_W()
        states_Wd = self._stack(self.embed(tokens_T), sequences, times, last_W, tokens)
        back_P = torch.arange(histories.longest * per_item - 1, -1, -1, device=last_W.device)  # ends aligned
        seen_WP = back_P < sequences.history_W[:, None]
        source_WP = torch.where(seen_WP, last_W[:, None] - back_P, 0)
        memory = tuple((k[source_WP].transpose(1, 2), v[source_WP].transpose(1, 2)) for k, v in tokens)
        elapsed_WP = None
        if times is not None:
            elapsed_WP = times.asked_T[last_W, None] - times.happened_T[source_WP]
        return CausalDecodingState(states_Wd=states_Wd, memory=memory, seen_WP=seen_WP, elapsed_WP=elapsed_WP)

    def step(
        self, state: CausalDecodingState, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None
    ) -> tuple[Tensor, CausalDecodingState]:
        """Logits [W, K, V] of the next level, rows in packed order. The first step takes no beams: K is 1.

        Args:
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that it appends.
        """
        level, past = state.level, list[KeysValues]()
        if beams_WK is None or codes_WK is None:
            return self._logits(state.states_Wd, 0)[:, None], replace(state, level=1)
        h_Rd = self.embed((codes_WK + self.first_token[level - 1]).flatten())
        columns = state.seen_WP.shape[1] + level
        biases = {
            table: table(range(columns - 1, columns), columns)[:, 0]  # [H, columns]; blocks may share one
            for table in dict.fromkeys(map(self.position_bias, self.blocks))
        }
        for number, block in enumerate(self.blocks):
            q, k, v, gate = block.project(h_Rd)
            beam = tuple(x.unflatten(0, beams_WK.shape)[:, :, :, None] for x in (k, v))  # [W, K, H, 1, D]
            if state.past:
                beam = tuple(
                    torch.cat([before.take_along_dim(beams_WK[..., None, None, None], 1), x], 3)
                    for before, x in zip(state.past[number], beam, strict=True)
                )
            past.append((beam[0], beam[1]))
            mixed = self._mix(
                block, q.unflatten(0, beams_WK.shape), state, number, past[-1], biases[self.position_bias(block)]
            )
            h_Rd = block.finish(h_Rd, mixed.flatten(0, 1), gate)
        logits_WKV = self._logits(self.norm(h_Rd), level).unflatten(0, beams_WK.shape)
        return logits_WKV, replace(state, level=level + 1, past=tuple(past))

    def _mix(
        self,
        block: CausalBlock,
        q_WKHD: Tensor,
        state: CausalDecodingState,
        number: int,
        beams: KeysValues,
        bias_HC: Tensor,
    ) -> Tensor:
        """Attention of each beam's newest token to its window's history and its own codes, [W, K, H, D]."""
        (k_WHPD, v_WHPD), (k_WKHJD, v_WKHJD) = state.memory[number], beams
        history, extra = k_WHPD.shape[2], k_WKHJD.shape[3]
        to_history = (q_WKHD.transpose(1, 2) @ k_WHPD.mT).transpose(1, 2)  # [W, K, H, P]
        to_beam = (k_WKHJD @ q_WKHD[..., None])[..., 0]  # [W, K, H, J]
        scores = torch.cat([to_history, to_beam], -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias_HC
        if state.elapsed_WP is not None:
            elapsed_WC = nn.functional.pad(state.elapsed_WP, (0, extra))  # its own codes: no time has passed
            scores = scores + block.bias_of_times(elapsed_WC).transpose(1, 2)[:, None]
        seen_WC = nn.functional.pad(state.seen_WP, (0, extra), value=True)
        weights = block.weigh(scores, seen_WC[:, None, None, :]).to(v_WHPD.dtype)
        from_history = (weights[..., :history].transpose(1, 2) @ v_WHPD).transpose(1, 2)
        return from_history + (weights[..., None, history:] @ v_WKHJD)[..., 0, :]


def _read_rows(histories: Histories, sequences: Sequences) -> Tensor:
    """int64 [R]: the last token of each history, or of every item."""
    return sequences.item_rows_N(len(histories.items_N)) if histories.all_targets else sequences.last_rows_W()
