"""The settings of the stage embed: section `embed` of params.yaml."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pipeline.knobs import Between, Name

FIELD = re.compile(r"\{(\w+)\}")  # a field of a template segment


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Say which encoder turns items into vectors, and how."""

    # none: vectors without a dimension, for items of which nothing but interactions is known (quantize.interactions: 1)
    encoder: Literal["tfidf", "text", "multimodal", "precomputed", "none"]
    # Segments of the item's text; a segment whose field is missing is left out, the others are joined by ". ".
    template: tuple[str, ...]
    # tfidf: width after the truncated SVD (never more than the data allow)
    dimensions: Annotated[int, Between(1, 100_000)]
    # text and multimodal, down to shard_items
    model: Name  # a Hugging Face name or a local folder
    revision: Name
    max_tokens: Annotated[int, Between(1, 1_000_000)]  # longer texts are cut here
    batch_tokens: Annotated[int, Between(1, 100_000_000)]  # tokens of a batch, padding and images included
    dtype: Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 on a GPU, float32 on a CPU
    shard_items: Annotated[int, Between(1, 100_000_000)]  # items of a shard; finished shards survive a kill
    # multimodal, down to max_image_pixels
    images: Name  # the folder that image paths start from; no image outside of it is read
    prompt: str  # what the model is asked, after the images
    pooling: Literal["last_token", "mean"]
    # of one image at most, 28 x 28 pixels each; larger images are shrunk
    image_tokens: Annotated[int, Between(1, 65_536)]
    max_images: Annotated[int, Between(1, 1000)]  # of one item; further ones are counted and left out
    max_image_pixels: Annotated[int, Between(1, 1_000_000_000)]  # larger images are refused
    # precomputed: a .npy, .npz, .safetensors or .parquet file; the vectors that came with the dataset are in
    # data/interactions/items.parquet.
    path: Name
    match: Literal["auto", "id", "order"]  # precomputed: how rows find their item

    def __post_init__(self) -> None:
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
