"""Join what interactions say about the items to the vectors of the stage embed, before they are quantized.

With the share w of `quantize.interactions`, a content vector c and a vector v from interactions (`cooccurrence.py`),
both of length 1, become (sqrt(1 - w) c, sqrt(w) v). So the inner product of two items is the weighted mean
(1 - w) c.c' + w v.v'. With w = 1, or without content, v stands alone.

Shape legend: I items, L levels, d width of the vectors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.artifacts import TrainingPart
from pipeline.errors import RESTORE, UserError
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.cooccurrence import interaction_vectors
from pipeline.quantize.neighbours import neighbour_agreement
from pipeline.quantize.rows import unit_rows


@dataclass(frozen=True)
class Joined:
    """`Joined` holds the vectors that are quantized, and the two blocks that they were made of.

    vectors_Id: float32 [I, d]. content_Id: [I, width of the content, 0 if there is none], of length 1 or zeros.
    related_Id: the same from interactions. pairs: see `InteractionVectors`.
    """

    vectors_Id: np.ndarray
    content_Id: np.ndarray
    related_Id: np.ndarray
    pairs: int

    def figures(self, config: QuantizeConfig, codes_IL: np.ndarray) -> dict[str, Any]:
        """Return the entry `interactions` of quality.json.

        content_neighbour_agreement, interaction_neighbour_agreement: per level, the share of items whose nearest
        neighbour by this block alone has the same codes up to that level; null if fewer than two items have a vector.
        """
        return {
            "share": config.interactions,
            "window": config.interaction_window,
            "shift": config.interaction_shift,
            "dimensions": self.related_Id.shape[1],
            "pairs": self.pairs,
            "items_without_vector": int((~self.related_Id.any(axis=1)).sum()),
            "content_neighbour_agreement": _agreement(self.content_Id, codes_IL),
            "interaction_neighbour_agreement": _agreement(self.related_Id, codes_IL),
        }


def join_interactions(content_Id: np.ndarray, part: TrainingPart, config: QuantizeConfig) -> Joined:
    """Join the vectors from the interactions of the training part to those of embed.

    Args:
        content_Id: float32 [I, d], row = item_id; d is 0 if embed.encoder is none.

    Raises:
        UserError: the split has items that the vectors do not have, or no two items are related.
    """
    if len(part.items_N) and int(part.items_N.max()) >= len(content_Id):
        raise UserError(
            f"the split has item {int(part.items_N.max())}, the embeddings have {len(content_Id):,} items",
            "the two were made from different logs",
            f"run `dvc repro`\n{RESTORE}",
        )
    found = interaction_vectors(
        part,
        len(content_Id),
        window=config.interaction_window,
        shift=config.interaction_shift,
        dimensions=config.interaction_dimensions,
    )
    content_Id, _ = unit_rows(content_Id)
    share = config.interactions
    if share == 1 or content_Id.shape[1] == 0:
        vectors_Id = found.vectors_Id
    else:
        vectors_Id = np.hstack([np.sqrt(1 - share) * content_Id, np.sqrt(share) * found.vectors_Id]).astype(np.float32)
    return Joined(vectors_Id, content_Id, found.vectors_Id, found.pairs)


def _agreement(vectors_Id: np.ndarray, codes_IL: np.ndarray) -> list[float] | None:
    """Compute the neighbour agreement among the items that have a vector."""
    present_I = vectors_Id.any(axis=1)
    if present_I.sum() < 2:
        return None
    return [round(share, 4) for share in neighbour_agreement(vectors_Id[present_I], codes_IL[present_I])]
