"""A model folder of a stranger is loaded as it should be or refused in one line, at once, whatever its files say."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from pipeline.errors import UserError
from pipeline.generator import load_generator

ODD: list[Any] = [
    *(None, True, "x", "", [], {}, [1], {"a": 1}, -1, 0, 1.5, 5, 10**6, 2**31, 2**63, 10**400, 1e308),
    *(float("nan"), float("inf"), "\x1b]0;owned\x07\n", [[]], "5", [None]),
]
NAMES = ("rastp+skipgr", "intrr", "hstu")


@pytest.fixture
def copy(root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies one of the saved models into a folder of its own."""
    return lambda name: shutil.copytree(root / "tests/golden/generators" / name, tmp_path / "generator")


def change(folder: Path, path: tuple[str, ...], value: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    section = config
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))


def reason(folder: Path) -> str:
    """Why the folder is refused, in one line and in under a second of computation; empty if it loads."""
    began = time.process_time()  # by the clock of the wall, other processes of the machine would count
    try:
        load_generator(folder)
        return ""
    except UserError as error:
        return error.what if not set(error.what) & set("\n\x1b") else pytest.fail(repr(error.what))
    finally:
        assert time.process_time() - began < 1


@pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_config_json_ends_otherwise(name: str, every: int, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    whole = (folder / "config.json").read_text()
    config = json.loads(whole)
    sections = ("backbone", *name.split("+")) if name != "hstu" else ("backbone",)
    paths = [(key,) for key in config] + [(section, key) for section in sections for key in config[section]]
    for number, path in enumerate(paths):
        for value in ODD[number % every :: every]:
            change(folder, path, value)
            reason(folder)
            (folder / "config.json").write_text(whole)
    assert reason(folder) == ""


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("strategy",), 5, "strategy is 5, expected a text"),
        (("max_history",), "x", "max_history is 'x', expected a whole number"),
        (("max_history",), 0, "max_history is 0, which is not between 1 and"),
        (
            ("backbone", "encoder_layers"),
            10**6,
            "backbone.encoder_layers is 1000000, expected a whole number from 1 to",
        ),
        (("backbone", "encoder_layers"), 100, "the layers would need a larger network than model.safetensors holds"),
        (("backbone", "d_model"), 16_000, "the layers would need a larger network"),
        (("backbone", "d_model"), 16.0, "backbone.d_model is 16.0, expected a whole number"),
        (("backbone", "heads"), True, "backbone.heads is True, expected a whole number"),
        (("backbone", "name"), "gpt", "backbone.name is 'gpt', expected one of t5, decoder, hstu"),
        (("backbone", "dropout"), float("nan"), "backbone.dropout is nan, expected a number"),
        (("widths",), [64, 10**9, 64], "widths would need a larger network"),
        (("widths",), "abc", "widths is 'abc', expected a list of numbers"),
        (("rastp", "keep"), "all", "rastp.keep is 'all', expected a number"),
        (("backbone",), [], "lacks 'backbone'"),
    ],
)
def test_what_is_wrong_in_config_json_is_said(
    path: tuple[str, ...], value: Any, words: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("rastp+skipgr")
    change(folder, path, value)
    assert words in reason(folder)


def test_rows_of_items_that_the_tensors_do_not_have_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("hstu")
    for key, value in (("actions", True), ("item_rows", True), ("separators", False)):
        change(folder, ("backbone", key), value)
    change(folder, ("action_sizes",), [2])
    assert "backbone.item_rows would need a larger network than model.safetensors holds" in reason(folder)


@pytest.mark.parametrize("text", ["[]", "5", "null", "[" * 100_000, '{"a": ' * 100_000, "", "\xff", "9" * 10_000])
def test_json_of_another_shape_is_refused(text: str, copy: Callable[[str], Path]) -> None:
    folder = copy("hstu")
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert reason(folder)


def test_tensors_that_differ_are_named(copy: Callable[[str], Path]) -> None:
    folder = copy("hstu")
    path = folder / "model.safetensors"
    whole = load_file(path)
    name = max(whole, key=lambda key: whole[key].size)

    def refused(tensors: dict[str, np.ndarray]) -> str:
        save_file(tensors, path)
        return reason(folder)

    lacking = {key: array for key, array in whole.items() if key != name}
    assert f"lacks 1 tensors, such as {name}" in refused(lacking)
    assert "has 1 tensors that the network of config.json does not have, such as extra" in refused(
        {**whole, "extra\n": np.zeros(1, np.float32)}
    )
    assert f"{name} is of type torch.float16, torch.float32 expected" in refused(
        {**whole, name: whole[name].astype(np.float16)}
    )
    assert f"{name} has shape [1]" in refused({**whole, name: np.zeros(1, np.float32)})
    broken = whole[name].copy()
    broken.flat[3] = np.nan
    assert f"{name} holds numbers that are not finite" in refused({**whole, name: broken})
    save_torch({key: torch.from_numpy(array).bfloat16() for key, array in whole.items()}, path)
    assert "model.safetensors" in (said := reason(folder))
    assert "type" in said
    assert refused(whole) == ""


def test_items_of_another_shape_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("hstu")
    path = folder / "items.parquet"
    whole = pd.read_parquet(path)
    for frame, words in (
        (whole.drop(columns="raw_id"), "items.parquet lacks the column raw_id"),
        (whole.drop(columns="code_2"), "items.parquet lacks the column code_2"),
        (whole.drop(columns="item_id"), "items.parquet lacks the column item_id"),
        (whole.iloc[:0], "items.parquet has no rows"),
        (whole.iloc[::-1], "item_id is not 0, 1, 2"),
        (whole.assign(code_1=whole.code_1 + 0.5), "code_1 is of type float64, whole numbers expected"),
        (whole.assign(code_1="x"), "code_1 is of type"),
        (whole.assign(code_1=-1), "cannot be loaded"),
        (whole.assign(code_1=10**9), "cannot be loaded"),
        (whole.assign(raw_id="a"), "two items have the same"),
        (pd.DataFrame(), "items.parquet lacks the column item_id"),
    ):
        frame.to_parquet(path)
        assert words in reason(folder)
    whole.to_parquet(path)
    assert reason(folder) == ""
