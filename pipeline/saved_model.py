"""Check models/generator of a stranger before a network is built from it: its config.json, its tensors, its items.

config.json says how large a network to build, and a few bytes of it could ask for any amount of memory and time. So no
size in it may be larger than the tensors of the same folder bear out.
"""

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pandas as pd
import torch

from pipeline.printing import shown

MAX_LEVELS = 64
MAX_HISTORY = 1_000_000  # items of a history
MAX_PAD = 1 << 24  # positions of a padded window
MAX_SETTING = 100_000  # of a strategy's whole numbers, where the tensors are smaller

TOP = {"strategy": str, "pad_to": int, "max_history": int, "seed": int, "dataset": str, "widths": list[int]}


def check_config(config: Any) -> None:
    """Check the keys of config.json that every model has, and `digit`.

    Raises:
        ValueError: a key is missing, or its value is not of its type or outside its bounds.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config.json holds a {type(config).__name__}, not keys with values")
    for key, kind in TOP.items():
        if key not in config:
            raise ValueError(f"config.json lacks '{key}'")
        _check(key, config[key], kind)
    if not isinstance(config.get("backbone"), Mapping):
        raise ValueError("config.json lacks 'backbone', or it is no mapping of names to values")
    if not isinstance(config.get("digit", True), bool):
        raise ValueError("config.json has a 'digit' that is neither true nor false")
    if not isinstance(config.get("fingerprints", {}), Mapping):
        raise ValueError("config.json has 'fingerprints' that are no mapping of names to values")
    bounds = {"pad_to": (0, MAX_PAD), "max_history": (1, MAX_HISTORY)}
    for key, (low, high) in bounds.items():
        if not low <= config[key] <= high:
            raise ValueError(f"config.json: {key} is {shown(config[key])}, which is not between {low} and {high}")
    widths = config["widths"]
    if not 1 <= len(widths) <= MAX_LEVELS or min(widths) < 1:
        raise ValueError(f"config.json: widths must be 1 to {MAX_LEVELS} numbers above 0")
    _check_actions(config.get("action_sizes", []))


def _check_actions(sizes: Any) -> None:
    if not _fits(sizes, list[int]) or len(sizes) > MAX_LEVELS or min(sizes, default=1) < 1:
        raise ValueError(f"config.json: action_sizes must be up to {MAX_LEVELS} numbers above 0")


def check_fields(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Check that saved values have the types of a dataclass's fields; names are the dataclass's own concern.

    Raises:
        ValueError: a value is not of its field's type.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if (name in hints and get_origin(hints[name]) is not None) or hints.get(name) in (int, float, bool, str):
            _check(f"{where}.{name}", value, hints[name])


def _check(name: str, value: Any, kind: Any) -> None:
    if not _fits(value, kind):
        raise ValueError(f"config.json: {name} is {shown(repr(value)[:80])}, expected {_words(kind)}")


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(_fits(entry, parts[0]) for entry in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    named = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return named.get(kind, "a list of numbers" if get_origin(kind) in (list, tuple) else str(kind))


def check_sizes(config: Mapping[str, Any], sections: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> None:
    """Check that the network of config.json is no larger than the tensors.

    Args:
        sections: the settings of the strategies, by name.
        weights: the tensors of model.safetensors, by name.

    Raises:
        ValueError: a size, or a product of sizes of which a tensor would have as many numbers, is larger.
    """
    size = sum(array.size for array in weights.values())
    backbone = config["backbone"]
    t5, hstu = backbone["name"] == "t5", backbone["name"] in ("hstu", "gr")
    encoder, decoder = backbone["encoder_layers"] if t5 else 0, backbone["decoder_layers"]
    layers = encoder if t5 and "intrr" in sections else encoder + decoder  # intrr reads with T5's encoder alone
    d_model, inner = backbone["d_model"], backbone["heads"] * backbone["d_head"]
    d_ff = 0 if hstu else backbone["d_ff"]
    trained_I = weights.get("catalogue.trained_I")  # of a model with a learned row of each item
    item_rows = 0
    if backbone.get("item_rows") and backbone.get("actions"):
        item_rows = (size if trained_I is None else trained_I.size) * d_model
    numbers = {
        "the layers": layers * max(d_model * inner, d_model * d_ff, (backbone["ff_hidden_layers"] - 1) * d_ff * d_ff),
        "backbone.relative_buckets": backbone["relative_buckets"] * backbone["heads"],
        "backbone.recency_items": backbone.get("recency_items", 0) * d_model if t5 else 0,
        "backbone.item_rows": item_rows,
        "action_sizes": sum(config.get("action_sizes", [])) * d_model,
        "widths": sum(config["widths"]) if "intrr" not in sections else max(config["widths"]),
    }
    for name, needed in numbers.items():
        if needed > size or layers > len(weights):
            raise ValueError(
                f"config.json: {name if needed > size else 'the layers'} would need a larger network than "
                f"model.safetensors holds, which has {len(weights):,} tensors with {size:,} numbers"
            )
    for section, settings in sections.items():
        for key, value in vars(settings).items():
            if isinstance(value, int) and value > max(size, MAX_SETTING):
                raise ValueError(f"config.json: {section}.{key} is {value}, above all sizes of this model")


def check_weights(weights: Mapping[str, np.ndarray], expected: Mapping[str, torch.Tensor]) -> None:
    """Compare tensors with those of the network.

    Raises:
        ValueError: a tensor is missing or extra, has another type or shape, or holds numbers that are not finite.
    """
    for names, what in ((set(expected) - set(weights), "lacks"), (set(weights) - set(expected), "has")):
        if names:
            more = " that the network of config.json does not have" if what == "has" else ""
            raise ValueError(f"model.safetensors {what} {len(names)} tensors{more}, such as {shown(min(names)[:80])}")
    for name, tensor in expected.items():
        array = weights[name]
        found = torch.from_numpy(array).dtype
        if found != tensor.dtype:
            raise ValueError(f"model.safetensors: {name} is of type {found}, {tensor.dtype} expected")
        if array.shape != tuple(tensor.shape):
            shape, wanted = list(array.shape), list(tensor.shape)
            raise ValueError(
                f"model.safetensors: {name} has shape {shape}, config.json and items.parquet give {wanted}"
            )
        if tensor.is_floating_point() and not np.isfinite(array).all():
            raise ValueError(f"model.safetensors: {name} holds numbers that are not finite")


def check_items(items: pd.DataFrame, levels: int) -> None:
    """Check the columns of items.parquet that a model needs.

    Raises:
        ValueError: a column is missing or of another type, item_id is not 0, 1, ..., or a raw id comes twice.
    """
    names = ["item_id", *(f"code_{level + 1}" for level in range(levels))]
    missing = [name for name in (*names, "raw_id") if name not in items]
    if missing:
        raise ValueError(f"items.parquet lacks the column {missing[0]}")
    if items.empty:
        raise ValueError("items.parquet has no rows")
    for name in names:
        if items[name].dtype.kind not in "iu":
            raise ValueError(f"items.parquet: {name} is of type {items[name].dtype}, whole numbers expected")
    if not np.array_equal(items["item_id"], np.arange(len(items))):
        raise ValueError("items.parquet: item_id is not 0, 1, 2, ...")
    raw_ids = items["raw_id"]
    if raw_ids.isna().any() or raw_ids.astype(str).duplicated().any():
        raise ValueError("items.parquet: an item has no raw_id, or two items have the same")
