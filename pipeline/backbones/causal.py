"""All causal backbones share this base: it leads from histories to logits, around a stack of blocks.

A window is one sequence of tokens (packing/sequences.py), and no token sees a later one. In training the logits of a
target are read at the last token of the history and at the target's codes. With `Histories.all_targets` they are read
at every item: each item is the target of the items before it, all in one pass. In decoding the history is read once,
its keys and values are stored once per window, and each beam adds the keys and values of the codes that it chose.

`read` takes one vector per item instead of codes, and returns the states of these items.

With `backbone.actions` an action token follows the codes of each item of a history (action_tokens.py), and all codes of
the target are fed: the last one predicts the target's action. No token of an interaction knows its time before the
action token, as a target's time is not known.

Shape legend: W windows, N items of all histories, T tokens of all sequences, L levels, V codes of a level, K beams, H
heads, D width of a head, d width of the model; local: R rows whose states are read, S tokens of an item, E tokens of a
target that are fed, P history positions of the longest window, J codes of a beam that are decoded, C = P + J columns
that a beam attends to.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from pipeline.backbones.action_tokens import ActionTokens
from pipeline.backbones.blocks import KeysValues
from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.relative_bias import RelativeBias
from pipeline.backbones.sid_tokens import SidBackbone
from pipeline.catalogue import Catalogue
from pipeline.ops.compiling import compile_block
from pipeline.ops.dropout import Dropout
from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import Times
from pipeline.packing.histories import Histories
from pipeline.packing.sequences import Sequences, lay_out, times_of


class CausalBlock(nn.Module, ABC):
    """One layer of a causal backbone: project, attend, finish.

    `project` returns a gate beside queries, keys and values, and `finish` gets it unchanged: HSTU's U, T5's input.
    """

    def forward(self, h_Td: Tensor, layout: Layout, bias: Tensor, rows_R: Tensor | None = None) -> Tensor:
        """Return the layer's output [T, d]; or with `rows_R` the output [R, d] of these rows, if only they are read."""
        return self.forward_with_memory(h_Td, layout, bias, rows_R)[0]

    def forward_with_memory(
        self, h_Td: Tensor, layout: Layout, bias: Tensor, rows_R: Tensor | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Return what `forward` returns, and the keys and values of all tokens, [T, H, D] each."""
        q_THD, k_THD, v_THD, gate = self.project(h_Td)
        mixed_THD = self.attend(q_THD, k_THD, v_THD, layout, bias)
        if rows_R is not None:
            h_Td, mixed_THD, gate = (x.index_select(0, rows_R) for x in (h_Td, mixed_THD, gate))
        return self.finish(h_Td, mixed_THD, gate), (k_THD, v_THD)

    @abstractmethod
    def project(self, h_Td: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return queries, keys and values [T, H, D], and the gate [T, ...]."""

    @abstractmethod
    def attend(self, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        """Attend from every token to itself and to the tokens before it in its sequence; return [T, H, D]."""

    @abstractmethod
    def weigh(self, scores: Tensor, seen: Tensor) -> Tensor:
        """Return attention weights of biased scores; the last axis holds all keys of a query.

        The weights are 0 where `seen` is False.
        """

    @abstractmethod
    def finish(self, h_Td: Tensor, mixed_THD: Tensor, gate: Tensor) -> Tensor:
        """Return the layer's output [T, d] from the layer's input, the result of `attend`, and the gate."""

    def bias_of_times(self, elapsed: Tensor) -> Tensor:
        """Return the bias [..., H] of times in seconds [...]; a layer that reads no times returns zeros [..., 1]."""
        return torch.zeros((*elapsed.shape, 1), device=elapsed.device)


Block = TypeVar("Block", bound=CausalBlock)


@dataclass(frozen=True, kw_only=True)
class CausalDecodingState:
    """A `CausalDecodingState` holds what decoding needs between two steps. It never changes: a step returns a new one.

    The histories' last tokens are aligned in the last column, so that a distance is a difference of columns.
    """

    states_Wd: Tensor  # state of each history's last token
    memory: tuple[KeysValues, ...]  # per layer: keys and values of the history [W, H, P, D], one copy per window
    seen_WP: Tensor  # bool: True where a column holds a token of the history
    elapsed_WP: Tensor | None  # int64: seconds from each token to the history's end; for a backbone that wants times
    level: int = 0  # levels decoded so far
    past: tuple[KeysValues, ...] = ()  # per layer: keys and values of the beams' codes [W, K, H, J, D]


class CausalBackbone(SidBackbone, Generic[Block]):
    """A stack of causal blocks over packed sequences; a subclass builds the blocks.

    Args:
        vectors_only: build only what `read` needs: no token table and no heads.
    """

    blocks: Iterable[Block]
    norm: nn.Module

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        super().__init__(config, catalogue)
        self.dropout = Dropout(config.dropout)
        self.action_tokens: ActionTokens | None = None
        if config.actions:
            if not catalogue.action_sizes:
                raise ValueError("backbone.actions is true, and the catalogue says nothing of actions")
            self.action_sizes = catalogue.action_sizes
            rows = catalogue.items if config.has_item_rows and not vectors_only else 0
            self.action_tokens = ActionTokens(catalogue.action_sizes, config.d_model, rows)
        if not vectors_only:
            self._add_tokens(int(config.separators))
            self._add_heads()
            for head in self.heads:
                nn.init.normal_(head.weight, std=config.d_model**-0.5)

    # ------------------------------------------------------------------------------------ what a subclass may change

    def embed(self, tokens_T: Tensor) -> Tensor:
        """Return the input vectors [T, d] of token ids."""
        vectors_Td: Tensor = self.tokens(tokens_T)
        return vectors_Td

    @property
    def input_scale(self) -> float:
        """Return the factor of all vectors that the first layer reads."""
        return 1.0

    @abstractmethod
    def position_bias(self, block: Block) -> RelativeBias:
        """Return the block's bias of relative positions; blocks may share one."""

    # ------------------------------------------------------------------------------------------ training

    def compile_training(self) -> None:
        """Compile the blocks, at the first training batch and for batches of every size.

        All blocks share one compilation. Outside of training they run uncompiled.
        """
        for block in self.blocks:
            compile_block(block)

    def sizes(self, histories: Histories) -> tuple[int, ...]:
        """Return the numbers that a training step over `histories` depends on beside the shapes of its tensors."""
        return histories.longest, histories.pad_to, histories.all_targets

    def forward(self, histories: Histories, targets_W: Tensor, *, actions_only: bool = False) -> list[Tensor]:
        """Return teacher-forced logits of every level: L tensors [W, V of the level].

        With `all_targets` they are [N, V of the level]: the logits of the item that follows each item. A network with
        actions appends the logits of the target's action, one tensor per column.

        Args:
            targets_W: int64 item ids in packed order, on the model's device: `targets[histories.order]`.
            actions_only: return the logits of actions alone, and compute none of codes.
        """
        if self.action_tokens is not None:
            fed_WLd = self.embed(self.tokens_IS[targets_W])
            states_RLd = self.read_interactions(self.embed(self.tokens_IS[histories.items_N]), histories, fed_WLd)
            items_R = None if self.action_tokens.items is None else _target_items(histories, targets_W)
            actions = self.action_tokens.logits(states_RLd[:, -1], items_R, self.catalogue.trained_I)
            if actions_only:
                return actions
            return self._logits_of_levels(states_RLd) + actions
        # The target's last code is predicted, and never fed.
        fed = self.levels - 1
        sequences = lay_out(histories, self.tokens_IS.shape[1], fed)
        # `source_T` points into one list: the tokens of all histories, then those of the targets that are fed.
        tokens = torch.cat([self.tokens_IS[histories.items_N].flatten(), self.tokens_IS[targets_W, :fed].flatten()])
        h_Td = self.embed(tokens[sequences.source_T])
        # Level l + 1 is predicted l tokens after the history's last one. Codes a b c of a target, no separators:
        # history ... x y z, then a b -> z predicts level 1, a level 2, b level 3; z in row 5 -> rows 5 6 7
        rows_RL = _read_rows(histories, sequences)[:, None] + torch.arange(self.levels, device=h_Td.device)
        rows_RL = rows_RL.clamp_(max=len(h_Td) - 1)  # items that belong to no window may point behind the end
        times = self._times(histories, sequences, self.levels)
        states = self._stack(h_Td, sequences, times, rows_RL.flatten())
        states_RLd = torch.unflatten(states, 0, rows_RL.shape)
        return self._logits_of_levels(states_RLd)

    def read(self, vectors_Nd: Tensor, histories: Histories) -> Tensor:
        """Return what `SidBackbone.read` says; with `all_targets` the states [N, d] of every item."""
        sequences = lay_out(histories, 1, 0)
        times = self._times(histories, sequences, 1)
        if histories.pad_to:
            vectors_Nd = vectors_Nd.index_select(0, sequences.source_T)
        rows_R = None if histories.all_targets and sequences.are_items else _read_rows(histories, sequences)
        return self._stack(vectors_Nd, sequences, times, rows_R)

    def read_interactions(self, vectors_NSd: Tensor, histories: Histories, fed_WEd: Tensor | None = None) -> Tensor:
        """Read items with their actions; return [R, E + 1, d]: the states that predict each token of the targets.

        The last of these states predicts the action, where the whole target is fed.

        Args:
            vectors_NSd: vectors of the items' tokens.
            fed_WEd: vectors of the E tokens of each target; None: none is fed.
        """
        h_Td, sequences = self._interactions(vectors_NSd, histories, fed_WEd)
        rows_RE = _read_rows(histories, sequences)[:, None] + torch.arange(sequences.fed + 1, device=h_Td.device)
        rows_RE = rows_RE.clamp_(max=len(h_Td) - 1)  # items that belong to no window may point behind the end
        times = self._times(histories, sequences, sequences.per_item)
        return torch.unflatten(self._stack(h_Td, sequences, times, rows_RE.flatten()), 0, rows_RE.shape)

    def _interactions(
        self, vectors_NSd: Tensor, histories: Histories, fed_WEd: Tensor | None
    ) -> tuple[Tensor, Sequences]:
        """Return the vectors [T, d] of items, actions and targets on the packed axis, and where they lie."""
        assert self.action_tokens is not None
        actions_Nd = self.action_tokens.vectors(histories.actions_NA, len(vectors_NSd)) * self.input_scale
        if self.config.over_items:  # an action token holds its item too: the next item is predicted from it
            actions_Nd = actions_Nd + vectors_NSd[:, 0]
        vectors_Td = torch.cat([vectors_NSd, actions_Nd[:, None].to(vectors_NSd.dtype)], 1).flatten(0, 1)
        if fed_WEd is not None:
            vectors_Td = torch.cat([vectors_Td, fed_WEd.flatten(0, 1)])
        sequences = lay_out(histories, vectors_NSd.shape[1] + 1, 0 if fed_WEd is None else fed_WEd.shape[1])
        return vectors_Td.index_select(0, sequences.source_T), sequences

    def _stack(
        self,
        h_Td: Tensor,
        sequences: Sequences,
        times: Times | None,
        rows_R: Tensor | None,
        memory: list[KeysValues] | None = None,
    ) -> Tensor:
        """Run all blocks and the final norm; return the states [R, d] of the rows that are read.

        Args:
            rows_R: int64; None: all rows are read, R = T.
            memory: takes the keys and values of each layer, where it is given.
        """
        # Only training runs what is compiled: evaluation would compile again, for other shapes.
        h_Td = (self.dropout if self.training else self.dropout.forward)(h_Td)
        layout = sequences.layout(times)
        biases: dict[RelativeBias, Tensor] = {}  # the bias of each table: blocks that share a table share its bias
        for number, block in enumerate(self.blocks, start=1):
            table = self.position_bias(block)
            if table not in biases:
                biases[table] = table.for_layout(layout, sequences.longest)
            # Only the last block's output is read, and only at `rows_R`: its other rows are not finished.
            rows = rows_R if number == self.config.decoder_layers else None
            if memory is None:
                h_Td = (block if self.training else block.forward)(h_Td, layout, biases[table], rows)
            else:
                h_Td, keys_values = block.forward_with_memory(h_Td, layout, biases[table], rows)
                memory.append(keys_values)
        states_Rd: Tensor = (self.norm if self.training else self.norm.forward)(h_Td)
        return states_Rd

    def _times(self, histories: Histories, sequences: Sequences, levels: int) -> Times | None:
        """Return the times of all tokens, or None for a network that reads none.

        Raises:
            ValueError: the network reads times and the histories have none.
        """
        if not self.wants_times:
            return None
        if histories.times_N is None:
            raise ValueError("this backbone reads times: pack histories with times_N, or set backbone.time_bias false")
        return times_of(histories.times_N, histories.lengths_W, sequences, levels)

    # ------------------------------------------------------------------------------------------ decoding

    def begin(self, histories: Histories) -> CausalDecodingState:
        """Read the histories once, for all levels and beams."""
        keys_values_T = list[KeysValues]()  # per layer, of all tokens on the packed axis [T, H, D]
        if self.action_tokens is not None:
            h_Td, sequences = self._interactions(self.embed(self.tokens_IS[histories.items_N]), histories, None)
        else:
            sequences = lay_out(histories, self.tokens_IS.shape[1], 0)
            h_Td = self.embed(self.tokens_IS[histories.items_N].flatten()[sequences.source_T])
        per_item = sequences.per_item
        times = self._times(histories, sequences, self.levels + (self.action_tokens is not None))
        last_W = sequences.last_rows_W()
        states_Wd = self._stack(h_Td, sequences, times, last_W, keys_values_T)
        # From the packed axis to one row per window, last tokens aligned in the last column.
        # lengths 1, 3 of tokens a | b c d: back 2 1 0 -> rows . . a | b c d; seen 0 0 1 | 1 1 1
        back_P = torch.arange(histories.longest * per_item - 1, -1, -1, device=last_W.device)
        seen_WP = back_P < sequences.history_W[:, None]
        source_WP = torch.where(seen_WP, last_W[:, None] - back_P, 0)
        memory = tuple((k[source_WP].transpose(1, 2), v[source_WP].transpose(1, 2)) for k, v in keys_values_T)
        elapsed_WP = None
        if times is not None:
            elapsed_WP = times.asked_T[last_W, None] - times.happened_T[source_WP]
        return CausalDecodingState(states_Wd=states_Wd, memory=memory, seen_WP=seen_WP, elapsed_WP=elapsed_WP)

    def step(
        self, state: CausalDecodingState, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None
    ) -> tuple[Tensor, CausalDecodingState]:
        """Return the logits [W, K, V] of the next level, rows in packed order, and the state after it.

        The first step takes no beams: K is 1.

        Args:
            beams_WK: int64, which of the previous step's beams each beam continues.
            codes_WK: int64, the code that each beam appends.
        """
        level = state.level
        if beams_WK is None or codes_WK is None:
            # `begin` has read the history, whose last state predicts level 1.
            return self._logits(state.states_Wd, 0)[:, None], replace(state, level=1)
        h_Rd = self.embed((codes_WK + self.first_token[level - 1]).flatten())
        # The new code is in the last column. P 6, level 2: history in columns 0 to 5, codes in 6 and 7 -> query 7 of 8
        columns = state.seen_WP.shape[1] + level
        biases = {
            table: table(range(columns - 1, columns), columns)[:, 0]  # [H, C]
            for table in dict.fromkeys(map(self.position_bias, self.blocks))
        }
        past = list[KeysValues]()
        for number, block in enumerate(self.blocks):
            q, k, v, gate = block.project(h_Rd)
            new_k, new_v = (torch.unflatten(x, 0, beams_WK.shape)[:, :, :, None] for x in (k, v))  # [W, K, H, 1, D]
            if state.past:
                # A beam takes over the keys and values of the beam that it continues: beams 0 0 2 -> rows 0, 0, 2
                parent_WK111 = beams_WK[..., None, None, None]
                old_k, old_v = (x.take_along_dim(parent_WK111, 1) for x in state.past[number])
                new_k, new_v = torch.cat([old_k, new_k], 3), torch.cat([old_v, new_v], 3)
            past.append((new_k, new_v))
            q_WKHD = torch.unflatten(q, 0, beams_WK.shape)
            mixed = self._mix(block, q_WKHD, state, number, past[-1], biases[self.position_bias(block)])
            h_Rd = block.finish(h_Rd, mixed.flatten(0, 1), gate)
        logits_WKV = torch.unflatten(self._logits(self.norm(h_Rd), level), 0, beams_WK.shape)
        return logits_WKV, replace(state, level=level + 1, past=tuple(past))

    def _mix(
        self,
        block: Block,
        q_WKHD: Tensor,
        state: CausalDecodingState,
        number: int,
        beams: KeysValues,
        bias_HC: Tensor,
    ) -> Tensor:
        """Attend from each beam's newest token to the window's history and the beam's codes; return [W, K, H, D].

        Args:
            number: index of the block.
            beams: keys and values of the beams' codes, the newest included.
        """
        k_WHPD, v_WHPD = state.memory[number]
        k_WKHJD, v_WKHJD = beams
        history = k_WHPD.shape[2]
        decoded = k_WKHJD.shape[3]
        # Scores over P + J columns. All beams of a window share its history, which is never copied for each of them.
        to_history = (q_WKHD.transpose(1, 2) @ k_WHPD.mT).transpose(1, 2)  # [W, K, H, P]
        to_beam = (k_WKHJD @ q_WKHD[..., None])[..., 0]  # [W, K, H, J]
        scores = torch.cat([to_history, to_beam], -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) + bias_HC
        # A code of the beam is always seen, and no time has passed since it: seen . x x | x x, elapsed . 9 0 | 0 0
        if state.elapsed_WP is not None:
            elapsed_WC = nn.functional.pad(state.elapsed_WP, (0, decoded))
            scores = scores + block.bias_of_times(elapsed_WC).transpose(1, 2)[:, None]
        seen_WC = nn.functional.pad(state.seen_WP, (0, decoded), value=True)
        weights = block.weigh(scores, seen_WC[:, None, None, :]).to(v_WHPD.dtype)
        # The weights fall apart again: those of the history, and those of the beam's codes.
        from_history = (weights[..., :history].transpose(1, 2) @ v_WHPD).transpose(1, 2)
        return from_history + (weights[..., None, history:] @ v_WKHJD)[..., 0, :]


def _read_rows(histories: Histories, sequences: Sequences) -> Tensor:
    """Return int64 [R]: the row of the last token of each history, or with `all_targets` of every item."""
    return sequences.item_rows_N(len(histories.items_N)) if histories.all_targets else sequences.last_rows_W()


def _target_items(histories: Histories, targets_W: Tensor) -> Tensor:
    """Return int64 [R]: the target of each history, or with `all_targets` of every item; an item of no window has any.

    Two windows of items 5 6 | 7 with targets 8 and 9 -> 8 9; with `all_targets` 6 8 | 9
    """
    if not histories.all_targets:
        return targets_W
    return histories.items_N.roll(-1).index_copy(0, histories.lengths_W.cumsum(0) - 1, targets_W)
