"""The folders beside models/generator that a model needs to answer by its ranking."""

from pathlib import Path

from pipeline.artifacts import read_json

# Ranking -> folders beside the generator's; `fused` may need `dense`, too
COMPANIONS: dict[str, tuple[str, ...]] = {
    "generator": (),
    "dense": ("dense",),
    "counting": ("counting",),
    "fused": ("counting", "fusion"),
}


def companions(generator: Path, ranking: str) -> dict[str, Path]:
    """Return these folders by their names.

    Raises:
        UserError: models/fusion, which says whether the dense retriever is fused, is missing or damaged.
    """
    names = [*COMPANIONS[ranking]]
    if ranking == "fused" and "dense" in read_json(generator.parent / "fusion/fusion.json", weights=dict)["weights"]:
        names.append("dense")
    return {name: generator.parent / name for name in names}
