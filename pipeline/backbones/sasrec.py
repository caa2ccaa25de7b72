"""`SasRec` is a causal Transformer over items instead of Semantic IDs: one position per item, and a softmax over items.

Paper: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. The catalogue gives each item one code of
one level, its index (training/names.py), so that training, decoding and evaluation are those of every backbone: the one
level of a beam search is the whole ranking, and exact.

The vector of an item is a learned row, its id, plus a linear map of its content vector (data/embeddings):

    e_i = id_i + P c_i,    logit of item i after a history = state of the history's last item . e_i

The same vectors are read and scored (tied). An item that training never saw has its content alone: its row would be
random numbers that only the softmax's other terms move. Without content vectors, items are their rows alone.
Different from the paper on purpose:
- the loss is the cross-entropy over all items, not one sampled negative per target. Of a catalogue of more than
  FULL_SOFTMAX_ITEMS, training takes NEGATIVES draws (training/negatives.py), and validation takes all;
- layers, norms and positions are those of `Decoder`: T5's relative bias instead of a learned vector per position.
As in the paper's code, the first layer reads vectors multiplied by the square root of the width. With small matrices at
the start (START_STD, not T5's), what the layers add does not drown the item: a new network looks for items near to
those of the history, and learns from there. Measured: docs/sasrec.md.

Shape legend: I items of the catalogue, W windows, N items of all histories, V codes of the one level (V = I), d width
of the model; local: R states that are read, C width of a content vector, M draws from a
large catalogue, X items whose vectors are asked for.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.decoder import Decoder
from pipeline.catalogue import Catalogue
from pipeline.packing.batch import SampledItems
from pipeline.packing.histories import Histories

FULL_SOFTMAX_ITEMS = 200_000  # the largest catalogue that training takes the softmax of as a whole
NEGATIVES = 8_192  # items that stand for a larger one, in each batch
EXCLUDED = -1e30  # the logit of a draw that is the target: finite, as its probability 0 is multiplied by its logarithm
START_STD = 0.02  # of every matrix at the start, and so of both parts of an item's vector


@dataclass(frozen=True)
class ItemState:
    """An `ItemState` holds the state [W, d] of each history; the one step of decoding follows it."""

    states_Wd: Tensor


class SasRec(Decoder):
    """A stack of `decoder_layers` causal blocks over item vectors.

    Raises:
        ValueError: the catalogue's items are not one code of one level each, or only `read` is wanted.
    """

    token_names = ["item"]  # noqa: RUF012 - a property of the base class, which nobody changes

    def __init__(self, config: BackboneConfig, catalogue: Catalogue, vectors_only: bool = False):
        if vectors_only or catalogue.widths != (catalogue.items,):
            raise ValueError("sasrec reads items by their index, not vectors that others made, and not Semantic IDs")
        super().__init__(config, catalogue, vectors_only=True)
        self.ids = nn.Embedding(catalogue.items, config.d_model)
        self.content: nn.Linear | None = None
        if catalogue.content_IC is not None:
            self.content = nn.Linear(catalogue.content_IC.shape[1], config.d_model, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Embedding, nn.Linear)):
                nn.init.normal_(module.weight, std=START_STD)

    def item_vectors(self) -> Tensor:
        """Return the vectors of all items, [I, d]."""
        vectors_Id: Tensor = self.ids.weight
        if self.catalogue.trained_I is not None:
            vectors_Id = vectors_Id * self.catalogue.trained_I[:, None]
        if self.content is not None:
            vectors_Id = vectors_Id + self.content(self.catalogue.content_IC)
        return vectors_Id

    def vectors_of(self, items_X: Tensor) -> Tensor:
        """Return the vectors of some items, [X, d], without computing those of the others."""
        vectors_Xd: Tensor = self.ids(items_X)
        if self.catalogue.trained_I is not None:
            vectors_Xd = vectors_Xd * self.catalogue.trained_I[items_X][:, None]
        if self.content is not None and self.catalogue.content_IC is not None:
            vectors_Xd = vectors_Xd + self.content(self.catalogue.content_IC[items_X])
        return vectors_Xd

    def _states(self, histories: Histories, vectors_Nd: Tensor) -> Tensor:
        """Return what `read` returns, of the vectors of the histories' items."""
        scale: float = self.config.d_model**0.5
        return self.read(vectors_Nd * scale, histories)

    def forward(self, histories: Histories, targets_W: Tensor, sampled: SampledItems | None = None) -> list[Tensor]:
        """Return the logits of all items after each history, one tensor [W, I]; with `all_targets` [N, I].

        Args:
            targets_W: not read, as no code of a target is fed.
            sampled: what stands for the catalogue; the logits are then [W, 1 + M] or [N, 1 + M].
        """
        if sampled is not None:
            return [self._among(histories, sampled)]
        vectors_Id = self.item_vectors()
        states_Rd = self._states(histories, F.embedding(histories.items_N, vectors_Id))
        return [F.linear(states_Rd, vectors_Id)]

    def _among(self, histories: Histories, sampled: SampledItems) -> Tensor:
        """Return the logits [R, 1 + M] of each target and of the draws, the latter corrected; float32 or better."""
        items = (histories.items_N, sampled.targets_R, sampled.items_M)
        read_Nd, targets_Rd, drawn_Md = self.vectors_of(torch.cat(items)).split([len(part) for part in items])
        states_Rd = self._states(histories, read_Nd)
        target_R1 = (states_Rd * targets_Rd).sum(1, keepdim=True, dtype=targets_Rd.dtype)
        drawn_RM = F.linear(states_Rd, drawn_Md).to(target_R1.dtype) - sampled.log_expected_M
        drawn_RM = drawn_RM.masked_fill(sampled.items_M == sampled.targets_R[:, None], EXCLUDED)
        return torch.cat([target_R1, drawn_RM], 1)

    def begin(self, histories: Histories) -> ItemState:  # type: ignore[override]  # `step` takes what this returns
        """Read the histories once."""
        return ItemState(self._states(histories, self.vectors_of(histories.items_N)))

    def step(  # type: ignore[override]
        self, state: ItemState, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None
    ) -> tuple[Tensor, ItemState]:
        """Return the logits [W, 1, I] of all items, float32 also under autocast, so that near items do not tie."""
        with torch.autocast(state.states_Wd.device.type, enabled=False):
            vectors_Id = self.item_vectors()
            return F.linear(state.states_Wd.to(vectors_Id.dtype), vectors_Id)[:, None], state
