"""Choose what names an item to the network: its Semantic ID, or, for a network over items, the item itself.

Shape legend: I items of the catalogue, C width of a content vector.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.artifacts import Embeddings, Sids, Splits, fingerprint
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.errors import UserError
from pipeline.exposures import Exposures
from pipeline.item_table import ItemTable
from pipeline.training.negatives import counts_in_training

COLUMNS = ("item_id", "raw_id", "title")  # of items.parquet, that a saved model has too


@dataclass(frozen=True, kw_only=True)
class ItemNames:
    """`ItemNames` are the codes of all items, and what they were read from.

    inputs: fingerprints of the files, by name. line: what is printed of them; empty for Semantic IDs alone. trained_I:
    bool, the items that training sees, for a network with a learned row of each. content_IC: float32, the items'
    content vectors, of length 1 or 0, for a network over items, and for a strategy that reads them. action_sizes:
    values of each column of actions, for a network that reads them.
    """

    sids: Sids
    inputs: dict[str, str] = field(default_factory=dict)
    line: str = ""
    trained_I: np.ndarray | None = None
    content_IC: np.ndarray | None = None
    action_sizes: tuple[int, ...] = ()

    @classmethod
    def of_items(
        cls, trained_I: np.ndarray, vectors_IC: np.ndarray | None, inputs: dict[str, str], line: str
    ) -> "ItemNames":
        """Name each item by its index, the only code of one level.

        Args:
            vectors_IC: content vectors, scaled to length 1 here; a vector of zeros stays as it is.
        """
        items = len(trained_I)
        content_IC = None if vectors_IC is None else _unit(vectors_IC)
        sids = Sids(np.arange(items, dtype=np.int32)[:, None], (items,), {}, {}, digit=False)
        return cls(sids=sids, inputs=inputs, line=line, trained_I=trained_I, content_IC=content_IC)

    def catalogue(self) -> Catalogue:
        """Build the catalogue, on the CPU."""
        sids = self.sids
        return Catalogue(
            sids.codes_IL,
            sids.widths,
            sids.digit,
            content_IC=self.content_IC,
            trained_I=self.trained_I,
            action_sizes=self.action_sizes,
        )


def read_sequences(task: Literal["retrieval", "ranking"], folder: Path) -> tuple[Splits, Exposures | None]:
    """Read what windows are cut from: the interactions, or for ranking the exposures in their form.

    Raises:
        UserError: a file is missing or damaged, or there are no exposures.
    """
    splits = Splits.read(folder)
    if task == "retrieval":
        return splits, None
    exposures = Exposures.read(folder)
    if exposures is None:
        raise UserError(
            f"train.task is ranking, and {folder} has no exposures",
            "the network learns what users did with the items that they were shown",
            "name columns of the log in ingest.actions and run `dvc repro`, or set train.task=retrieval",
        )
    return exposures.sequences(splits), exposures


def read_names(
    backbone: BackboneConfig, splits: Splits, sids: Path, embeddings: Path, content_key: str = ""
) -> ItemNames:
    """Read data/sids, or data/embeddings for a network over items.

    Args:
        content_key: the key of params.yaml by which a strategy reads content vectors beside Semantic IDs; empty: none
            does.

    Raises:
        UserError: a file is missing or damaged; or there is no vector for each item, or one has a number that is not
            finite.
    """
    if backbone.over_items:
        names = item_names(splits, embeddings, content=backbone.content, key="backbone.content")
    else:
        names = ItemNames(sids=Sids.read(sids), inputs={"sids": fingerprint(sids / "sids.parquet")})
        if content_key:
            names = _with_content(names, embeddings, content_key)
        if backbone.has_item_rows:
            names = replace(names, trained_I=counts_in_training(splits) > 0)
    return replace(names, action_sizes=_action_sizes(splits)) if backbone.actions else names


def _with_content(names: ItemNames, embeddings: Path, key: str) -> ItemNames:
    """Add the content vectors of data/embeddings to Semantic IDs. Raises UserError as `read_names`."""
    if not embeddings.exists():
        raise UserError(
            f"{key} is true, and {embeddings} is not here",
            "the network reads the items' content vectors",
            f"run `dvc repro` or `dvc checkout`, or set {key}=false",
        )
    vectors_IC = Embeddings.read(embeddings).vectors_Id
    items = len(names.sids.codes_IL)
    _check(vectors_IC, items, embeddings, key)
    if not vectors_IC.shape[1]:
        raise UserError(
            f"{key} is true, and the vectors in {embeddings} have width 0",
            "embed.encoder none made no vectors",
            f"set another embed.encoder and run `dvc repro`, or set {key}=false",
        )
    line = f"{items:,} items by their Semantic IDs and content vectors of width {vectors_IC.shape[1]}"
    inputs = {**names.inputs, "embeddings": fingerprint(embeddings)}
    return replace(names, content_IC=_unit(vectors_IC), inputs=inputs, line=line)


def _unit(vectors_IC: np.ndarray) -> np.ndarray:
    """Return vectors scaled to length 1, float32; a vector of zeros stays as it is."""
    lengths_I1 = np.linalg.norm(vectors_IC, axis=1, keepdims=True)
    return (vectors_IC / np.where(lengths_I1 > 0, lengths_I1, 1)).astype(np.float32)


def _action_sizes(splits: Splits) -> tuple[int, ...]:
    """Return the number of values of each column of actions. Raises UserError where the splits have none."""
    if splits.actions is None:
        raise UserError(
            "backbone.actions is true, and data/splits has no actions",
            "the network reads what each user did with each item, from actions_NA.npy",
            "name columns of the log in ingest.actions and run `dvc repro`, or set backbone.actions to false",
        )
    return splits.actions.sizes


def item_names(splits: Splits, embeddings: Path, *, content: bool, key: str) -> ItemNames:
    """Name each item by its index, and read data/embeddings unless the items are their ids alone.

    Args:
        splits: say which items training sees.
        embeddings: the folder of the content vectors.
        content: whether an item is its content vector too.
        key: the key of params.yaml that sets `content`.

    Raises:
        UserError: as `read_names`.
    """
    trained_I = counts_in_training(splits) > 0
    line = f"{len(trained_I):,} items by their ids alone"
    if not content:
        return ItemNames.of_items(trained_I, None, {}, f"{line} ({key} is false)")
    if not embeddings.exists():
        return ItemNames.of_items(trained_I, None, {}, f"{line} ({embeddings} is not here)")
    vectors_IC = Embeddings.read(embeddings).vectors_Id
    _check(vectors_IC, len(trained_I), embeddings, key)
    if not vectors_IC.shape[1]:
        return ItemNames.of_items(trained_I, None, {}, f"{line} (embed.encoder is none, which makes no vectors)")
    without = int((~vectors_IC.any(1)).sum())
    line = f"{len(trained_I):,} items by their ids and content vectors of width {vectors_IC.shape[1]}"
    if without:
        line += f"; {without:,} have a vector of zeros, and so their id alone"
    return ItemNames.of_items(trained_I, vectors_IC, {"embeddings": fingerprint(embeddings)}, line)


def read_items(path: Path, count: int) -> ItemTable:
    """Open the table of items, of which a model takes `COLUMNS`.

    Raises:
        UserError: there are not `count` items. It is known before training, and not when the model is written.
    """
    items = ItemTable(path)
    if len(items) != count:
        raise UserError(
            f"{path} lists {len(items):,} items, and {count:,} are to be trained",
            "the stages before were run on different logs",
            "run `dvc repro`, or `dvc checkout` for the files of this commit",
        )
    return items


def _check(vectors_IC: np.ndarray, items: int, embeddings: Path, key: str) -> None:
    if len(vectors_IC) != items:
        raise UserError(
            f"{embeddings} has {len(vectors_IC):,} vectors for {items:,} items",
            "it and data/splits were made from different logs",
            "run `dvc repro`",
        )
    if not np.isfinite(vectors_IC).all():
        item = int(np.flatnonzero(~np.isfinite(vectors_IC).all(1))[0])
        raise UserError(
            f"the content vector of item {item} in {embeddings} has a number that is not finite",
            "every logit would be lost with it",
            f"mend the vectors that embed reads, or train without them with {key}=false",
        )
