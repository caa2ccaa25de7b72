"""Stage quantize: turn item vectors into Semantic IDs.

The stage reads data/embeddings/ and the items' categories; with `quantize.interactions` above 0, it also reads from
data/splits/ which items the training part of each user holds. It writes data/sids/: the codes of each item with the
deduplication digit last, the codebooks, quality.json, and its figures per level once more as levels.csv, for DVC's
plot.

Shape legend: I items, L levels, d width of the embeddings.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.artifacts import (
    EMBEDDINGS,
    INTERACTIONS,
    SIDS,
    SPLITS,
    Embeddings,
    Interactions,
    Sids,
    TrainingPart,
    write_bytes,
)
from pipeline.errors import RESTORE, UserError
from pipeline.item_table import ItemTable
from pipeline.printing import say
from pipeline.quantize import build_quantizer
from pipeline.quantize.advice import sizes_for
from pipeline.quantize.collisions import deduplication_digits
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.interactions import join_interactions
from pipeline.quantize.quality import collision_rate, level_table, quality_metrics
from pipeline.quantize.rows import UnitVectors, Vectors
from pipeline.quantize.usable import check_vectors


class QuantizeParams(Protocol):
    """`QuantizeParams` declares what the stage reads of params.yaml."""

    @property
    def seed(self) -> int: ...

    @property
    def quantize(self) -> QuantizeConfig: ...


def run(
    params: QuantizeParams,
    *,
    embeddings: Path = EMBEDDINGS,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    output: Path = SIDS,
) -> dict[str, Any]:
    """Write data/sids/ and return the content of quality.json.

    splits: is read only where `quantize.interactions` is above 0.

    Raises:
        UserError: an input is missing or damaged, a vector is not usable, there are more codes than items or more
            collisions than allowed, the digit is too narrow, a library or GPU is missing, training diverged, or no two
            items co-occur. Nothing is written then.
    """
    vectors_Id = Embeddings.read(embeddings, mmap=True).vectors_Id
    items = ItemTable(Interactions(interactions).items)
    check_vectors(vectors_Id, items.raw_ids, needed=params.quantize.interactions < 1)
    categories_I = items.numbered("categories")
    part = TrainingPart.read(splits) if params.quantize.interactions else None
    sids = make_sids(vectors_Id, params.quantize, params.seed, categories_I, part)
    check_collisions(sids.quality, params.quantize)
    write_bytes(output / "levels.csv", level_table(sids.quality).encode())
    sids.write(output)  # and the manifest, last
    say(summary(sids))
    return {"widths": list(sids.widths), "digit": sids.digit, **sids.quality}


def make_sids(
    vectors_Id: Vectors,
    config: QuantizeConfig,
    seed: int,
    categories_I: np.ndarray | None = None,
    part: TrainingPart | None = None,
) -> Sids:
    """Compute Semantic IDs, without reading or writing files.

    Args:
        vectors_Id: float32 [I, d], row = item_id.
        categories_I: int [I], -1 for an item without a category; None: no item has a category.
        part: the interactions of which `config.interactions` takes a share; not needed where that is 0.

    Raises:
        UserError: as `run`, except for the files.
    """
    joined = join_interactions(np.asarray(vectors_Id), part, config) if part and config.interactions else None
    if joined:
        vectors_Id = joined.vectors_Id
    if config.normalize_input:
        vectors_Id = UnitVectors(vectors_Id)
    quantized = build_quantizer(config, seed).fit(vectors_Id)
    before = collision_rate(quantized.codes_IL)

    # Items of equal codes: `sinkhorn` gives them other last codes, `digit` a further column, `none` leaves them.
    if config.collisions == "sinkhorn":
        from pipeline.quantize.sinkhorn import spread_last_codes

        last_I = spread_last_codes(
            quantized.codes_IL, quantized.last_rows_Ik, quantized.codebooks[f"level_{config.levels}"]
        )
        quantized = replace(
            quantized,
            codes_IL=np.column_stack([quantized.codes_IL[:, :-1], last_I]),
            errors_I=quantized.errors_with(last_I),
        )
    codes_IL = quantized.codes_IL
    widths = (config.codes,) * config.levels
    if config.collisions == "digit":
        digits_I, digit_width = deduplication_digits(codes_IL, config.digit_width)
        codes_IL = np.column_stack([codes_IL, digits_I])
        widths = (*widths, digit_width)
    return Sids(
        codes_IL=codes_IL,
        widths=widths,
        codebooks=quantized.codebooks,
        digit=config.collisions == "digit",
        quality={
            "method": config.method,
            "collisions": config.collisions,
            "quantizer_collision_rate": before,
            **quality_metrics(vectors_Id, quantized, config.codes, categories_I),
            **({"sampled": [vars(level) for level in quantized.sampled]} if quantized.sampled else {}),
            **({"interactions": joined.figures(config, quantized.codes_IL)} if joined else {}),
        },
    )


def check_collisions(quality: dict[str, Any], config: QuantizeConfig) -> None:
    """Raise UserError, with advice from the figures, if more items share their codes than config allows."""
    rate = quality["collision_rate"]
    allowed = config.max_collision_rate
    if rate <= allowed:
        return
    used = min(quality[f"level_{level + 1}"]["used_codes"] for level in range(config.levels))
    advice = []
    if quality["identical_vectors"] > rate / 2:
        advice.append(
            f"{quality['identical_vectors']:.1%} of items have the same vector as another item, and no quantizer can "
            f"tell these apart: {_more_to_tell_apart(quality)}"
        )
    if used < config.codes / 2:
        advice.append(
            f"a level uses {used} of its {config.codes} codes: choose another quantize.method"
            + ("" if config.method == "rkmeans" else " or another quantize.learning_rate")
            + ", which may use more of them"
        )
    advice.append(
        "raise quantize.codes or quantize.levels"
        + _enough(quality, config)
        + ("" if config.normalize_residuals else ", switch on quantize.normalize_residuals")
        + f", or accept the collisions: quantize.max_collision_rate={-(-rate * 100 // 1) / 100:g}"
    )
    raise UserError(
        f"{rate:.1%} of items share their codes with another, quantize.max_collision_rate allows "
        f"{allowed:.1%}; the largest group has {quality['largest_group']} items",
        "a generator can only guess among items of equal codes",
        "\n".join([*advice, RESTORE]),
    )


def _enough(quality: dict[str, Any], config: QuantizeConfig) -> str:
    """Say which sizes are expected to reach the allowed rate."""
    sizes = sizes_for(
        config.max_collision_rate,
        pairs=quality["colliding_pairs"],
        identical=quality["identical_vectors"],
        items=quality["items"],
        levels=config.levels,
        codes=config.codes,
    )
    found = (
        [
            f"{name}={value}"
            for name, value in (("quantize.codes", sizes.codes), ("quantize.levels", sizes.levels))
            if value
        ]
        if sizes
        else []
    )
    return f" (by the collisions measured, about {' or '.join(found)})" if found else ""


def _more_to_tell_apart(quality: dict[str, Any]) -> str:
    figures = quality.get("interactions", {"share": 0})
    if figures["share"] < 1:
        return "embed more of their text (embed.template)"
    return (
        f"{figures['items_without_vector']:,} items have no vector from interactions; "
        "raise quantize.interaction_window, lower quantize.interaction_shift, "
        "or lower quantize.interactions where the items have texts"
    )


def summary(sids: Sids) -> str:
    """Write collisions and level widths as text, in two lines, and one line each about a sample and interactions."""
    quality = sids.quality
    last = {
        "digit": "the last is the deduplication digit",
        "none": "items of equal codes share a Semantic ID",
        "sinkhorn": f"{quality['quantizer_collision_rate']:.1%} of items shared their codes before the last level was "
        "assigned anew",
    }[quality["collisions"]]
    return (
        f"quantize: {quality['unique_codes']:,} distinct codes for {quality['items']:,} items; "
        f"{quality['collision_rate']:.1%} of items share their codes, {quality['largest_group']} at most\n"
        f"quantize: level widths {' x '.join(map(str, sids.widths))}, {last}"
        + (f"\n{_sampled_line(quality['sampled'])}" if "sampled" in quality else "")
        + (f"\n{_interactions_line(quality['interactions'])}" if "interactions" in quality else "")
    )


def _sampled_line(levels: list[dict[str, Any]]) -> str:
    """Say what was learned from a sample, and by how much that can have raised the error (see `Sampled`)."""
    excess = ", ".join(f"{level['excess']:.1%}" for level in levels)
    return (
        f"quantize: k-means learned from {levels[0]['points']:,} of {levels[0]['items']:,} items "
        f"(quantize.points_per_code); the mean squared error of the others is larger by {excess} level by level, about "
        "the most that learning from all items would save"
    )


def _interactions_line(figures: dict[str, Any]) -> str:
    return (
        f"quantize: a share of {figures['share']:g} comes from interactions: {figures['pairs']:,} pairs of items in "
        f"{figures['dimensions']} dimensions; {figures['items_without_vector']:,} items have no vector from them"
    )
