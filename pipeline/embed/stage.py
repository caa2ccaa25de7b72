"""Stage embed: give every item a vector.

The stage reads data/interactions/items.parquet (and images) and writes data/embeddings/. An item that has nothing to
embed gets a vector of zeros and is counted: it shares its codes with the other such items, and the deduplication digit
tells them apart. The seed changes nothing here, so that runs with different seeds share their embeddings.

The stage runs in one process, or in n processes under `torchrun --nproc-per-node n -m pipeline embed`, of which the
first one writes.

Shape legend: I items, B those of a block, d width of the embeddings.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types

from pipeline.artifacts import (
    EMBEDDINGS,
    INTERACTIONS,
    SCRATCH,
    Embeddings,
    Interactions,
    fingerprint,
    read_blocks,
    read_parquet,
)
from pipeline.embed.config import EmbedConfig
from pipeline.embed.precomputed import precomputed_vectors
from pipeline.embed.template import fields_of, render_text
from pipeline.errors import UserError
from pipeline.printing import say, shown

if TYPE_CHECKING:
    from pipeline.embed.shards import EncodedItems

FIRST_BROKEN = 5  # items with a broken vector that a message names


class EmbedParams(Protocol):
    """`EmbedParams` declares what the stage reads of params.yaml."""

    @property
    def embed(self) -> EmbedConfig: ...


def run(
    params: EmbedParams, *, interactions: Path = INTERACTIONS, output: Path = EMBEDDINGS, scratch: Path = SCRATCH
) -> dict[str, Any]:
    """Write data/embeddings/ and return the content of embeddings.json; {} in a process that only helps another one.

    Raises:
        UserError: an input is missing or damaged, no item has a text, an item has no vector or one with NaN, or the
            encoder cannot be loaded.
    """
    config = params.embed
    items = Interactions(interactions).items
    if config.encoder == "precomputed":
        summary = _precomputed(config, items, output)
        _report(summary)
        return summary
    raw_ids = read_parquet(items, columns=["raw_id"])["raw_id"].tolist()
    shards = None
    if config.encoder == "tfidf":
        from pipeline.embed.tfidf import tfidf_vectors

        texts = item_texts(items, config.template)
        vectors_Id = tfidf_vectors(texts, config.dimensions)
        facts = {"template": list(config.template), "items_without_text": texts.count("")}
    elif config.encoder == "none":
        vectors_Id, facts = np.zeros((len(raw_ids), 0), np.float32), {}
    else:
        encoded = _encode(config, items, raw_ids, output, scratch)
        if encoded is None:
            return {}
        vectors_Id, facts, shards = encoded
    counts = VectorCount(len(raw_ids), vectors_Id.shape[1])
    counts.add(vectors_Id)
    summary = {"encoder": config.encoder, **counts.checked(lambda item: raw_ids[item]), **facts}
    if config.encoder != "multimodal":
        _forget_rejects(output)
    Embeddings(vectors_Id, summary).write(output)
    if shards:
        shards.remove()
        shards.close()
    _report(summary)
    return summary


def _encode(config: EmbedConfig, items: Path, raw_ids: list[str], output: Path, scratch: Path) -> "EncodedItems | None":
    """Embed the items by a neural encoder and write the rejected images; None in a process that only helps another."""
    if config.encoder == "text":
        from pipeline.embed.text import text_vectors

        texts = item_texts(items, config.template)
        encoded = text_vectors(texts, config, scratch)
    else:
        from pipeline.embed.multimodal import multimodal_vectors

        texts = item_texts(items, config.template, required=False)
        images = (
            pq.read_table(items, columns=["image"])["image"].to_pylist()
            if "image" in pq.read_schema(items).names
            else [None] * len(texts)
        )
        encoded = multimodal_vectors(texts, images, raw_ids, config, output, scratch)
    if encoded is not None:
        encoded.facts["items_without_text"] = texts.count("")
    return encoded


def item_texts(items: Path, template: tuple[str, ...], required: bool = True) -> list[str]:
    """Return the text of each item, "" where it has none, in the order of item_id.

    Raises:
        UserError: the template names a field that the items do not have, or (where `required`) no item has a text.
    """
    read_parquet(items, columns=["item_id"])  # a missing or damaged file is named here
    columns = [field.name for field in pq.read_schema(items) if not pyarrow.types.is_nested(field.type)]
    fields = fields_of(template, columns)
    rows = pq.read_table(items, columns=fields).to_pylist() if fields else []
    texts = [render_text(template, row) for row in rows]
    if required and not any(texts):
        raise UserError(
            "no item has a text",
            f"embed.template reads {', '.join(template)}; the items have the columns {', '.join(map(shown, columns))}",
            "mend embed.template, or bring an item file with titles or vectors (embed.encoder=precomputed)\n"
            "or use interactions alone: dvc exp run -S embed.encoder=none -S quantize.interactions=1",
        )
    return texts


def _precomputed(config: EmbedConfig, items: Path, output: Path) -> dict[str, Any]:
    """Write the vectors of a file block by block, and return the content of embeddings.json."""
    path = Path(config.path)
    names = [block["raw_id"].cast(pa.large_string()) for block in read_blocks(items, ["raw_id"])]
    raw_ids = pa.concat_arrays(names) if names else pa.array([], pa.large_string())
    output.parent.mkdir(parents=True, exist_ok=True)
    matched = precomputed_vectors(path, config.match, raw_ids, output.parent)
    counts = VectorCount(*matched.shape)
    for block in matched.blocks():
        counts.add(block)
    summary = {
        "encoder": config.encoder,
        **counts.checked(lambda item: raw_ids[item].as_py()),
        "file": path.name,
        "fingerprint": fingerprint(path),
        "matched_by": matched.matched_by,
        "unused_rows": matched.unused_rows,
    }
    if matched.matched_by == "id":
        summary["ids_from"] = matched.ids_from
    _forget_rejects(output)
    Embeddings.write_blocks(matched.shape, matched.blocks(), summary, output)
    return summary


def _forget_rejects(output: Path) -> None:
    (output / "rejects.parquet").unlink(missing_ok=True)  # an earlier run may have left one


class VectorCount:
    """Check vectors that come in blocks, and count them."""

    def __init__(self, items: int, dimensions: int):
        self.items = items
        self.dimensions = dimensions
        self.done = 0
        self.zeros = 0
        self.broken = 0  # items with NaN or infinite numbers
        self.first_broken: list[int] = []

    def add(self, vectors_Bd: np.ndarray) -> None:
        """Add the vectors of the next items."""
        broken = self.done + np.flatnonzero(~np.isfinite(vectors_Bd).all(axis=1))
        self.broken += len(broken)
        self.first_broken += broken[: FIRST_BROKEN - len(self.first_broken)].tolist()
        self.zeros += int((~vectors_Bd.any(axis=1)).sum())
        self.done += len(vectors_Bd)

    def checked(self, name: Callable[[int], str]) -> dict[str, int]:
        """Return the counts. Vectors without a dimension are those of the encoder none.

        Args:
            name: gives the raw id of an item.

        Raises:
            UserError: a vector has NaN or infinite numbers, or all vectors are zeros.
        """
        if self.broken:
            raise UserError(
                f"{self.broken:,} of {self.items:,} items have NaN or infinite numbers in their embedding, "
                f"first: {', '.join(shown(name(item)) for item in self.first_broken)}",
                "distances to such vectors mean nothing",
                "mend these vectors, or set embed.dtype to float32 if embed.encoder made them",
            )
        if self.zeros == self.items and self.dimensions:
            raise UserError(
                "the embeddings of all items are zero",
                "vectors of zeros do not tell items apart",
                "bring other vectors, or choose another embed.encoder",
            )
        return {"items": self.items, "dimensions": self.dimensions, "zero_vectors": self.zeros}


def _report(summary: dict[str, Any]) -> None:
    if summary["encoder"] == "none":
        say(f"embed: {summary['items']:,} items without vectors: interactions alone make their Semantic IDs")
        return
    say(
        f"embed: {summary['items']:,} items x {summary['dimensions']} dimensions by {summary['encoder']}"
        + (f" ({summary['name']}, {summary['dtype']})" if "name" in summary else "")
    )
    if summary.get("matched_by") == "id":
        say(
            f"embed: vectors of {summary['file']} were matched by id ({shown(summary['ids_from'])}): "
            f"{summary['items']:,} of {summary['items']:,} items found; "
            f"{summary['unused_rows']:,} rows of the file belong to no item"
        )
    elif "matched_by" in summary:
        say(
            f"embed: vectors of {summary['file']} were matched by order: row i is item i of items.parquet, "
            f"{summary['items']:,} of {summary['items']:,} (no ids were found in the file, or embed.match is order)"
        )
    if summary["zero_vectors"]:
        say(
            f"embed: {summary['zero_vectors']:,} items have a vector of zeros"
            + (
                f", {summary['items_without_text']:,} of them because they have no text"
                if summary.get("items_without_text") and summary["encoder"] != "multimodal"
                else ""
            )
        )
    if summary.get("images_named"):
        say(
            f"embed: {summary['images']:,} of {summary['images_named']:,} images were used; "
            f"{summary['images_rejected']:,} were refused (rejects.parquet says why), "
            f"{summary['images_beyond_limit']:,} left out by embed.max_images"
        )
