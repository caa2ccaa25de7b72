"""`SasRec` is a causal Transformer over items instead of Semantic IDs: one position per item, and a softmax over items.

Paper: Kang, McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018. The catalogue gives each item one code of
one level, its index (train/names.py), so that training, decoding and evaluation are those of every backbone: the one
level of a beam search is the whole ranking, and exact.

The vector of an item is a learned row, its id, plus a linear map of its content vector (data/embeddings):

    e_i = id_i + P c_i,    logit of item i after a history = state of the history's last item . e_i

The same vectors are read and scored (tied). An item that training never saw has its content alone: its row would be
random numbers that only the softmax's other terms move. Without content vectors, items are their rows alone.
Different from the paper on purpose:
- the loss is the cross-entropy over all items, not one sampled negative per target, which loses a third of the recall
  (docs/results.md names who measured it);
- layers, norms and positions are those of `Decoder`: T5's relative bias instead of a learned vector per position;
- the vectors of items are not multiplied by the square root of the width before the first layer.

Shape legend: I items of the catalogue, W windows, N items of all histories, V codes of the one level (V = I), d width
of the model; local: R states that are read, C width of a content vector.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones.config import BackboneConfig
from pipeline.backbones.decoder import Decoder
from pipeline.catalogue import Catalogue
from pipeline.packing.histories import Histories

ITEM_STD = 0.02  # of both parts of an item's vector at the start, for content vectors of length 1


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
        nn.init.normal_(self.ids.weight, std=ITEM_STD)
        self.content: nn.Linear | None = None
        if catalogue.content_IC is not None:
            self.content = nn.Linear(catalogue.content_IC.shape[1], config.d_model, bias=False)
            nn.init.normal_(self.content.weight, std=ITEM_STD)

    def item_vectors(self) -> Tensor:
        """Return the vectors of all items, [I, d]."""
        vectors_Id: Tensor = self.ids.weight
        if self.catalogue.trained_I is not None:
            vectors_Id = vectors_Id * self.catalogue.trained_I[:, None]
        if self.content is not None:
            vectors_Id = vectors_Id + self.content(self.catalogue.content_IC)
        return vectors_Id

    def forward(self, histories: Histories, targets_W: Tensor) -> list[Tensor]:
        """Return the logits of all items after each history, one tensor [W, I]; with `all_targets` [N, I].

        Args:
            targets_W: not read, as no code of a target is fed.
        """
        vectors_Id = self.item_vectors()
        states_Rd = self.read(F.embedding(histories.items_N, vectors_Id), histories)
        return [F.linear(states_Rd, vectors_Id)]

    def begin(self, histories: Histories) -> ItemState:  # type: ignore[override]  # `step` takes what this returns
        """Read the histories once."""
        vectors_Nd = F.embedding(histories.items_N, self.item_vectors())
        return ItemState(self.read(vectors_Nd, histories))

    def step(  # type: ignore[override]
        self, state: ItemState, beams_WK: Tensor | None = None, codes_WK: Tensor | None = None
    ) -> tuple[Tensor, ItemState]:
        """Return the logits [W, 1, I] of all items, float32 also under autocast, so that near items do not tie."""
        with torch.autocast(state.states_Wd.device.type, enabled=False):
            vectors_Id = self.item_vectors()
            return F.linear(state.states_Wd.to(vectors_Id.dtype), vectors_Id)[:, None], state
