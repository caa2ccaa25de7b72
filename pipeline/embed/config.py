"""The settings of the stage embed: section `embed` of params.yaml."""

import re
from dataclasses import dataclass
from typing import Literal

FIELD = re.compile(r"\{(\w+)\}")  # a field of a template segment


@dataclass(frozen=True)
class EmbedConfig:
    """Say which encoder turns items into vectors, and how."""

    encoder: Literal["tfidf", "text", "multimodal", "precomputed"] = "tfidf"
    # Segments of the item's text; a segment whose field is missing is left out, the others are joined by ". ".
    template: tuple[str, ...] = ("{title}", "{categories}", "{description}")
    dimensions: int = 128  # tfidf: width after the truncated SVD (never more than the data allow)
    # text and multimodal, down to shard_items
    model: str = "google/flan-t5-base"  # a Hugging Face name or a local folder
    revision: str = "main"
    max_tokens: int = 128  # longer texts are cut here
    batch_tokens: int = 8192  # tokens of a batch, padding and images included
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    shard_items: int = 4096  # items of a shard; finished shards survive a kill
    # multimodal, down to max_image_pixels
    images: str = "data/interactions"  # the folder that image paths start from; no image outside of it is read
    prompt: str = "Summarize this item in one word. {item}"  # what the model is asked, after the images
    pooling: Literal["last_token", "mean"] = "last_token"
    image_tokens: int = 256  # of one image at most, 28 x 28 pixels each; larger images are shrunk
    max_images: int = 4  # of one item; further ones are counted and left out
    max_image_pixels: int = 50_000_000  # larger images are refused
    # precomputed: a .npy, .safetensors or .parquet file; this default takes the vectors that came with the dataset.
    path: str = "data/interactions/items.parquet"
    match: Literal["auto", "id", "order"] = "auto"  # precomputed: how rows find their item

    def __post_init__(self) -> None:
        for name in (
            "dimensions",
            "max_tokens",
            "batch_tokens",
            "shard_items",
            "image_tokens",
            "max_images",
            "max_image_pixels",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"embed.{name} must be 1 or more")
        if "{item}" not in self.prompt:
            raise ValueError("embed.prompt must say where the item's text goes: {item}")
        if not self.template:
            raise ValueError("embed.template needs at least one segment, such as '{title}'")
        for segment in self.template:
            rest, fields = FIELD.subn("", segment)
            if not fields or "{" in rest or "}" in rest:
                raise ValueError(
                    f"embed.template segment {segment!r} must name a field in braces, such as 'Brand: {{brand}}'"
                )
