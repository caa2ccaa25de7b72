"""Items with texts and pictures, and how the tests hand them to the tiny Qwen2.5-VL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from settings import some
from typed import present

from pipeline.embed.config import EmbedConfig
from pipeline.embed.images import Picture, inspect
from pipeline.embed.multimodal import multimodal_vectors
from pipeline.embed.qwen import Prompt, QwenEncoder
from pipeline.embed.shards import EncodedItems

SIZES = {"a": (48, 48), "b": (150, 90), "c": (60, 220), "d": (300, 300)}
# (text, images of the item): with and without either, several images
ITEMS = [
    ("red lipstick", "a.png"),
    ("blue paint", None),
    ("", "b.png"),
    ("", None),
    ("a set", "c.png; a.png; d.png"),
    ("garden hose, 20 m", "d.png"),
    ("", "a.png > c.png"),
]


def config(model: str, folder: Path, **changes: Any) -> EmbedConfig:
    return some(
        EmbedConfig,
        **{
            "encoder": "multimodal",
            "model": model,
            "images": str(folder),
            "image_tokens": 16,
            "batch_tokens": 150,
            "shard_items": 3,
            **changes,
        },
    )


def embed(model: str, folder: Path, items: Sequence[tuple[str, str | None]] = ITEMS, **changes: Any) -> EncodedItems:
    texts, images = zip(*items, strict=True)
    encoded = present(
        multimodal_vectors(
            texts,
            images,
            [f"r{i}" for i in range(len(items))],
            config(model, folder, **changes),
            folder.parent / "out",
            folder.parent / "scratch",
        )
    )
    encoded.shards.close()  # as the stage does, so that the same items may be embedded again
    return encoded


def prompt_and_pixels(encoder: QwenEncoder, text: str, pictures: list[Picture]) -> tuple[Prompt, list[torch.Tensor]]:
    grids = [encoder.grid(picture.width, picture.height) for picture in pictures]
    return (
        encoder.prompt(some(EmbedConfig).prompt, text, grids, 128),
        [encoder.pixels(picture.load()) for picture in pictures],
    )


def pictures_of(folder: Path, cell: str | None) -> list[Picture]:
    return [inspect(folder, name, 10**6) for name in (cell or "").replace(" > ", "; ").split("; ") if name]
