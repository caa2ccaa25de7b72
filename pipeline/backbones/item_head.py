"""`ItemBackbone` is what networks over items share: the vectors of items, the logits of all of them, and decoding.

The catalogue gives each item one code of one level, its index (training/names.py), so that training, decoding and
evaluation are those of every backbone: the one level of a beam search is the whole ranking, and exact.

The vector of an item is a learned row, its id, plus a linear map of its content vector (data/embeddings):

    e_i = id_i + P c_i,    logit of item i after a history = s . e_i,    s the state of the history's last item

The same vectors are read and scored (tied). An item that training never saw has its content alone: its row would be
random numbers that only the softmax's other terms move. Without content vectors, items are their rows alone. With
`backbone.temperature` above 0 the logit is the cosine of s and e_i over the temperature, as in HSTU's code.

The loss is the cross-entropy over all items. With `backbone.negatives`, and in any case where the catalogue has more
than FULL_SOFTMAX_ITEMS, training takes shared draws with the correction of their logits (training/negatives.py), and
validation takes all items.

Shape legend: I items of the catalogue, W windows, N items of all histories, V codes of the one level (V = I), d width
of the model; local: R states that are read, C width of a content vector, M draws from a large catalogue, X items whose
vectors are asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.causal import CausalBackbone
from pipeline.backbones.item_rows import rows_of_trained
from pipeline.ops.compiling import INDUCTOR_OPTIONS, compile_block
from pipeline.ops.layout import uses_kernels
from pipeline.ops.linear import padded_linear
from pipeline.ops.lookup import take_rows
from pipeline.packing.batch import SampledItems
from pipeline.packing.histories import Histories

FULL_SOFTMAX_ITEMS = 200_000  # the largest catalogue that training takes the softmax of as a whole by itself
NEGATIVES = 8_192  # items that stand for a larger one, in each batch
EXCLUDED = -1e30  # the logit of a draw that is the target: finite, as its probability 0 is multiplied by its logarithm
START_STD = 0.02  # of both parts of an item's vector at the start


@dataclass(frozen=True)
class ItemState:
    """An `ItemState` holds the state [W, d] of each history; the one step of decoding follows it."""

    states_Wd: Tensor


class ItemBackbone(CausalBackbone[Any]):
    """A network that reads one vector per item and scores items by the same vectors. A subclass brings the layers.

    A subclass calls `_add_items` at a fixed point of its constructor, as `SidBackbone` says of its tables.
    """

    compiled_logits: Callable[..., Tensor] | None = None  # `logits_of_draws`, where training is compiled

    @property
    def token_names(self) -> list[str]:
        return ["item", *self._last_names]

    @property
    def input_scale(self) -> float:
        scale: float = self.config.d_model**0.5
        return scale

    def _add_items(self) -> None:
        """Add the items' rows, and the map of their content vectors where the catalogue has some.

        Raises:
            ValueError: the catalogue's items are not one code of one level each.
        """
        catalogue = self.catalogue
        if catalogue.widths != (catalogue.items,):
            raise ValueError(
                f"{self.config.name} reads items by their index, not vectors that others made, and not Semantic IDs"
            )
        self.ids = nn.Embedding(catalogue.items, self.config.d_model)
        self.content: nn.Linear | None = None
        if catalogue.content_IC is not None:
            self.content = nn.Linear(catalogue.content_IC.shape[1], self.config.d_model, bias=False)

    def compile_training(self) -> None:
        """Compile the blocks, what stands before and behind them, and the logits of the draws."""
        super().compile_training()
        for module in (self.dropout, self.norm):
            compile_block(module)
        # The first model of a process has its width and number of draws as constants, so that a row is reduced at once.
        self.compiled_logits = torch.compile(logits_of_draws, options=INDUCTOR_OPTIONS)

    def item_vectors(self) -> Tensor:
        """Return the vectors of all items, [I, d]."""
        vectors_Id = rows_of_trained(self.ids.weight, self.catalogue.trained_I)
        if self.content is not None:
            vectors_Id = vectors_Id + self.content(self.catalogue.content_IC)
        return vectors_Id

    def vectors_of(self, items_X: Tensor) -> Tensor:
        """Return the vectors of some items, [X, d]; where fewer than all are asked for, only those are computed."""
        if len(items_X) >= self.catalogue.items:
            return take_rows(self.item_vectors(), items_X)
        vectors_Xd = rows_of_trained(self.ids(items_X), self.catalogue.trained_I, items_X)
        if self.content is not None and self.catalogue.content_IC is not None:
            vectors_Xd = vectors_Xd + self.content(self.catalogue.content_IC[items_X])
        return vectors_Xd

    def _states(
        self, histories: Histories, vectors_Nd: Tensor, targets_Wd: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the states [R, d] that predict the next item, and the logits of its action, a tensor per column.

        Args:
            vectors_Nd: vectors of the histories' items.
            targets_Wd: vectors of the targets. None, or a network without actions: no action is predicted.
        """
        if self.action_tokens is None:
            return self.read(vectors_Nd * self.input_scale, histories), []
        fed_W1d = None if targets_Wd is None else targets_Wd[:, None] * self.input_scale
        states_REd = self.read_interactions(vectors_Nd[:, None] * self.input_scale, histories, fed_W1d)
        return states_REd[:, 0], [] if targets_Wd is None else self.action_tokens.logits(states_REd[:, 1])

    def forward(
        self,
        histories: Histories,
        targets_W: Tensor,
        sampled: SampledItems | None = None,
        *,
        actions_only: bool = False,
    ) -> list[Tensor]:
        """Return the logits of all items after each history, one tensor [W, I]; with `all_targets` [N, I].

        A network with actions appends the logits of the target's action, as `CausalBackbone.forward` does.

        Args:
            targets_W: read by a network with actions alone.
            sampled: what stands for the catalogue; the logits are then [W, 1 + M] or [N, 1 + M].
            actions_only: return the logits of actions alone, and compute none of items.
        """
        if actions_only:
            items = (histories.items_N, targets_W)
            read_Nd, fed_Wd = self.vectors_of(torch.cat(items)).split([len(part) for part in items])
            return self._states(histories, read_Nd, fed_Wd)[1]
        if sampled is not None:
            return self._among(histories, targets_W, sampled)
        vectors_Id = self.item_vectors()
        fed_Wd = None if self.action_tokens is None else F.embedding(targets_W, vectors_Id)
        states_Rd, actions = self._states(histories, F.embedding(histories.items_N, vectors_Id), fed_Wd)
        states_Rd = compared(states_Rd, self.config.temperature, states=True)
        return [F.linear(states_Rd, compared(vectors_Id, self.config.temperature)), *actions]

    def _among(self, histories: Histories, targets_W: Tensor, sampled: SampledItems) -> list[Tensor]:
        """Return the logits [R, 1 + M] of each target and of the draws, the latter corrected; float32 or better.

        The logits of actions follow, as in `forward`.
        """
        fed_W = targets_W[: 0 if self.action_tokens is None else None]
        items = (histories.items_N, sampled.targets_R, sampled.items_M, fed_W)
        read_Nd, targets_Rd, drawn_Md, fed_Wd = self.vectors_of(torch.cat(items)).split([len(part) for part in items])
        states_Rd, actions = self._states(histories, read_Nd, fed_Wd)
        logits_of = self.compiled_logits if self.training and self.compiled_logits else logits_of_draws
        return [logits_of(states_Rd, targets_Rd, drawn_Md, sampled, self.config.temperature), *actions]

    def begin(self, histories: Histories) -> Any:
        """Read the histories once; return an `ItemState`."""
        return ItemState(self._states(histories, self.vectors_of(histories.items_N))[0])

    def step(self, state: Any, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None) -> tuple[Tensor, Any]:
        """Return the logits [W, 1, I] of all items, float32 also under autocast, so that near items do not tie."""
        with torch.autocast(state.states_Wd.device.type, enabled=False):
            vectors_Id = self.item_vectors()
            states_Wd = compared(state.states_Wd.to(vectors_Id.dtype), self.config.temperature, states=True)
            return F.linear(states_Wd, compared(vectors_Id, self.config.temperature))[:, None], state


def compared(vectors_Xd: Tensor, temperature: float, *, states: bool = False) -> Tensor:
    """Return vectors whose products are logits: as they are, or of length 1, those of states over the temperature.

    Lengths are computed in float32 or better, also under autocast.

    Args:
        temperature: 0: vectors as they are.
    """
    if not temperature:
        return vectors_Xd
    unit_Xd = F.normalize(vectors_Xd.to(torch.promote_types(vectors_Xd.dtype, torch.float32)), dim=-1)
    return unit_Xd / temperature if states else unit_Xd


def logits_of_draws(
    states_Rd: Tensor, targets_Rd: Tensor, drawn_Md: Tensor, sampled: SampledItems, temperature: float
) -> Tensor:
    """Return the logits [R, 1 + M] of each target and of the draws, the latter corrected; float32 or better.

    Args:
        targets_Rd: vectors of the targets.
        drawn_Md: vectors of the draws.
    """
    states_Rd = compared(states_Rd, temperature, states=True)
    targets_Rd, drawn_Md = compared(targets_Rd, temperature), compared(drawn_Md, temperature)
    target_R1 = (states_Rd * targets_Rd).sum(1, keepdim=True, dtype=targets_Rd.dtype)
    product = padded_linear if uses_kernels(states_Rd.device) else F.linear
    drawn_RM = product(states_Rd, drawn_Md).to(target_R1.dtype) - sampled.log_expected_M
    drawn_RM = drawn_RM.masked_fill(sampled.items_M == sampled.targets_R[:, None], EXCLUDED)
    return torch.cat([target_R1, drawn_RM], 1)
