"""What `embed:` in params.yaml may say."""

import re
from dataclasses import dataclass
from typing import Literal

FIELD = re.compile(r"\{(\w+)\}")  # a field of a template segment


@dataclass(frozen=True)
class EmbedConfig:
    """Which encoder turns an item into a vector."""

    encoder: Literal["tfidf", "text", "precomputed"] = "tfidf"
    # Segments of the item's text; a segment whose field is missing is left out, the others are joined by ". ".
    template: tuple[str, ...] = ("{title}", "{categories}", "{description}")
    dimensions: int = 128  # tfidf: width after the truncated SVD (never more than the data allow)
    model: str = "google/flan-t5-base"  # text: a Hugging Face name or a local folder
    revision: str = "main"
    max_tokens: int = 128  # text: longer items are cut here
    batch_tokens: int = 8192  # text: tokens of a batch, padding included
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    shard_items: int = 4096  # text: items of a shard; finished shards survive a kill
    # precomputed: a .npy, .safetensors or .parquet file; this default takes the vectors that came with the dataset.
    path: str = "data/interactions/items.parquet"
    match: Literal["auto", "id", "order"] = "auto"  # precomputed: how rows find their item

    def __post_init__(self) -> None:
        for name in ("dimensions", "max_tokens", "batch_tokens", "shard_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"embed.{name} must be 1 or more")
        if not self.template:
            raise ValueError("embed.template needs at least one segment, such as '{title}'")
        for segment in self.template:
            rest, fields = FIELD.subn("", segment)
            if not fields or "{" in rest or "}" in rest:
                raise ValueError(f"embed.template segment {segment!r} must name a field in braces, such as "
                                 "'Brand: {brand}'")
