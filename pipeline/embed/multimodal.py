"""Embed all items by their texts and images: check the images, write the prompts, run the encoder in batches.

All images are checked first (images.py), so that a broken image shows before hours of work. While the GPU computes a
batch, threads decode the images of the next batches.

Shape legend: I items, d width of the embeddings.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import fingerprint, write_parquet
from pipeline.embed.batches import in_step, packed_batches, pick_dtype
from pipeline.embed.config import EmbedConfig
from pipeline.embed.images import THREADS, BadImageError, Picture, Survey, survey
from pipeline.embed.qwen import AFTER, BEFORE, IMAGE, Prompt, QwenEncoder
from pipeline.embed.shards import EncodedItems, Shards, Share
from pipeline.errors import UserError
from pipeline.machine import pick_device
from pipeline.printing import shown

AHEAD = 2  # batches whose images are decoded ahead of the GPU


def multimodal_vectors(
    texts: Sequence[str],
    images: Sequence[str | None],
    raw_ids: Sequence[str],
    config: EmbedConfig,
    output: Path,
    scratch: Path,
) -> EncodedItems | None:
    """Embed all items and write `output`/rejects.parquet; an item without text and usable image becomes zeros.

    Args:
        texts: text of each item, "" where it has none.
        images: column `image` of each item.
        raw_ids: raw id of each item, for rejects.parquet.
        output: folder for rejects.parquet.
        scratch: folder for the shards.

    Returns:
        float32 [I, d] and facts; None in a process that only helps another one (shards.py).

    Raises:
        UserError: see `QwenEncoder`; no image at all can be used, there is nothing to embed, an image changed
            meanwhile, or memory ran out.
    """
    device = pick_device("auto")
    share = Share.of_environment()
    dtype = pick_dtype(config.dtype, device)
    encoder = QwenEncoder.load(config.model, config.revision, dtype, device, config.image_tokens)
    found = survey(images, Path(config.images), config.max_images, config.max_image_pixels)
    if found.rejects and not any(found.pictures):
        raise _no_image(found, config)
    if not any(texts) and not any(found.pictures):
        raise UserError(
            "no item has a text or an image",
            f"embed.template reads {', '.join(config.template)}",
            "mend embed.template, or bring an item file with titles or images",
        )

    # The prompt of an item has an image token for each merged patch of its images, so the grids come first.
    grids = [[encoder.grid(picture.width, picture.height) for picture in pictures] for pictures in found.pictures]
    prompts = [
        encoder.prompt(config.prompt, text, of_item, config.max_tokens)
        for text, of_item in zip(texts, grids, strict=True)
    ]

    # Items are encoded from long to short; lengths 0, 7, 9 -> order [2, 1]: item 0 has nothing to embed.
    lengths = np.array(
        [
            len(prompt.ids) if text or pictures else 0
            for text, prompt, pictures in zip(texts, prompts, found.pictures, strict=True)
        ]
    )
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]

    # All that decides the vectors goes into the fingerprint, which names the folder of the shards.
    facts = _facts(encoder, config, dtype)
    key = fingerprint(
        facts,
        config.shard_items,
        list(texts),
        [[picture.digest for picture in pictures] for pictures in found.pictures],
    )
    shards = Shards(scratch, key, len(order), config.shard_items, lengths[order])

    def encode(span: slice) -> Iterator[np.ndarray]:
        chosen = order[span]
        return encode_batches(
            encoder, [prompts[item] for item in chosen], [found.pictures[item] for item in chosen], config
        )

    encoded = shards.fill(encode, share)
    if encoded is None:
        return None
    vectors_Id = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    vectors_Id[order] = encoded
    write_parquet(output / "rejects.parquet", _reject_table(found, raw_ids))
    return EncodedItems(vectors_Id, facts | {"fingerprint": key, **_counts(found)}, shards)


def encode_batches(
    encoder: QwenEncoder, prompts: Sequence[Prompt], pictures: Sequence[Sequence[Picture]], config: EmbedConfig
) -> Iterator[np.ndarray]:
    """Yield the vectors of the items, batch by batch, with images decoded ahead of time."""
    spans = list(packed_batches([len(prompt.ids) for prompt in prompts], config.batch_tokens))
    # The readers decode images. The packer, one more thread, joins the images of a batch in pinned memory, so that the
    # main thread is free to start the GPU's work.
    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(1) as packer:

        def read(span: slice) -> Future[list[Tensor]]:
            pixels = [readers.submit(_pixels, encoder, picture) for of_item in pictures[span] for picture in of_item]
            return packer.submit(_together, pixels, encoder.device)

        def ready() -> Iterator[tuple[slice, list[Tensor]]]:
            # With AHEAD 2, batches 0 and 1 are read at first, and batch i + 2 when batch i is handed out.
            waiting = deque(read(span) for span in spans[:AHEAD])
            for i, span in enumerate(spans):
                waiting.extend(read(later) for later in spans[i + AHEAD : i + AHEAD + 1])
                yield span, waiting.popleft().result()

        def start(batch: tuple[slice, list[Tensor]]) -> Tensor:
            span, pixels = batch
            return encoder.start(prompts[span], pixels, config.pooling)

        yield from in_step(start, ready(), config.batch_tokens)


def _together(pixels: Sequence[Future[Tensor]], device: torch.device) -> list[Tensor]:
    """Join all patches of a batch into one tensor, pinned for a GPU; without patches the list is empty."""
    if not pixels:
        return []
    patches = torch.cat([future.result() for future in pixels])
    return [patches.pin_memory() if device.type == "cuda" else patches]


def _pixels(encoder: QwenEncoder, picture: Picture) -> Tensor:
    try:
        return encoder.pixels(picture.load())
    except (BadImageError, OSError) as error:  # the survey decoded this file without an error
        raise UserError(
            f"{picture.path} changed while items were embedded: {error}",
            "every vector must come from the image that was checked at the start",
            "run the same command again",
        ) from None


def _facts(encoder: QwenEncoder, config: EmbedConfig, dtype: str) -> dict[str, Any]:
    """Return the encoder and its settings, for embeddings.json and for the fingerprint of the shards."""
    return {
        "name": encoder.name,
        "revision": encoder.revision,
        "pooling": config.pooling,
        "dtype": dtype,
        "max_tokens": config.max_tokens,
        "template": list(config.template),
        "prompt": config.prompt,
        "chat": [BEFORE, IMAGE, AFTER],
        "image_tokens": config.image_tokens,
        "max_images": config.max_images,
    }


def _no_image(found: Survey, config: EmbedConfig) -> UserError:
    _, name, reason = found.rejects[0]
    return UserError(
        f"none of the {found.named:,} images that the items name can be used; {shown(name)}: {shown(reason)}",
        f"image paths start from embed.images, which is {config.images}",
        "set embed.images to the dataset's folder (the demo's is data/interactions/raw), or set embed.encoder to text",
    )


def _counts(found: Survey) -> dict[str, int]:
    return {
        "items_without_image": sum(not pictures for pictures in found.pictures),
        "images": sum(map(len, found.pictures)),
        "images_named": found.named,
        "images_rejected": len(found.rejects),
        "images_beyond_limit": found.beyond,
    }


def _reject_table(found: Survey, raw_ids: Sequence[str]) -> Any:
    import pyarrow as pa

    items, names, reasons = zip(*found.rejects, strict=True) if found.rejects else ((), (), ())
    return pa.table(
        {
            "raw_id": pa.array([raw_ids[item] for item in items], pa.string()),
            "image": pa.array(names, pa.string()),
            "reason": pa.array(reasons, pa.string()),
        }
    )
