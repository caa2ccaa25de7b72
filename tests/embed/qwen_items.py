"""Items with texts and pictures, and how the tests hand them to the tiny Qwen2.5-VL."""

from settings import some

from pipeline.embed.config import EmbedConfig
from pipeline.embed.images import Picture, inspect
from pipeline.embed.multimodal import multimodal_vectors

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


def config(model: str, folder, **changes) -> EmbedConfig:
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


def embed(model, folder, items=ITEMS, **changes):
    texts, images = zip(*items, strict=True)
    return multimodal_vectors(
        texts,
        images,
        [f"r{i}" for i in range(len(items))],
        config(model, folder, **changes),
        folder.parent / "out",
        folder.parent / "scratch",
    )


def prompt_and_pixels(encoder, text, pictures: list[Picture]):
    grids = [encoder.grid(picture.width, picture.height) for picture in pictures]
    return (
        encoder.prompt(some(EmbedConfig).prompt, text, grids, 128),
        [encoder.pixels(picture.load()) for picture in pictures],
    )


def pictures_of(folder, cell) -> list[Picture]:
    return [inspect(folder, name, 10**6) for name in (cell or "").replace(" > ", "; ").split("; ") if name]
