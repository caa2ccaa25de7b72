"""This module writes and reads models/generator/: a trained model, all that rebuilds it, and the raw ids of the items.

It is a layer above the strategies, because the strategy that trained a network rebuilds it, and a layer below all code
that trains or evaluates.

Shape legend: L levels; local: M interactions of the splits.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import read_json, read_parquet, read_tensors, write_json, write_tensors
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.decoding.item_index import ItemIndex, read_index
from pipeline.errors import UserError
from pipeline.large_files import write_rows
from pipeline.manifest import MANIFEST, seal
from pipeline.packing.backbone import Backbone
from pipeline.packing.kept import EvalSkips
from pipeline.printing import say, shown
from pipeline.saved_model import check_config, check_fields, check_items, check_sizes, check_weights
from pipeline.strategies.base import NetworkTraits
from pipeline.strategies.registry import choose_strategies, from_saved, settings_types

if TYPE_CHECKING:
    import pyarrow as pa

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
ITEMS = "items.parquet"
SKIPS = "skips.safetensors"  # only where the model is evaluated without some tokens of the histories


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A trained model in evaluation mode, with its catalogue; `load_generator` returns it."""

    model: Backbone
    catalogue: Catalogue
    items: pd.DataFrame  # item_id, raw_id, title, code_1 .. code_L; row = item_id
    config: dict[str, Any]  # config.json: backbone, widths, digit, and what training added
    eval_skips: EvalSkips | None = None  # by flat positions in the splits that the model was trained on
    index: ItemIndex | None = None  # of a network over items, instead of scoring all of them

    @property
    def ranks_items(self) -> bool:
        """Return whether the model was trained to rank items; False: it predicts actions (`train.task: ranking`)."""
        train = self.config.get("train")
        return not (isinstance(train, Mapping) and train.get("task") == "ranking")

    def require_items(self, folder: Path) -> None:
        """Raise UserError where the model, which lies in `folder`, ranks no items."""
        if not self.ranks_items:
            raise UserError(
                f"{folder} predicts what users do with items that they are shown, and ranks no items",
                "it was trained by train.task ranking",
                "set train.task=retrieval and run `dvc repro`, or name a model of that task",
            )


def save_generator(
    folder: Path,
    model: Backbone,
    catalogue: Catalogue,
    items: "Iterable[pa.Table] | pd.DataFrame",
    config: dict[str, Any],
    eval_skips: EvalSkips | None = None,
    stage: str = "train",
) -> None:
    """Write the folder; equal weights give equal bytes.

    Args:
        items: item_id, raw_id, title, sorted by item_id, as one frame or in blocks; this function adds the codes.
        config: JSON-like, added to `backbone`, `widths` and `digit`: strategy with its settings and pad_to, which
            rebuild the model; max_history, seed, dataset, fingerprints.
        eval_skips: the tokens that the model is evaluated without (`Sampler.eval_skips`); None: none.
        stage: the command that trained it, which the manifest names.
    """
    codes_IL = catalogue.codes_IL.cpu().numpy()
    codes = {f"code_{level + 1}": codes_IL[:, level].astype("int32") for level in range(catalogue.levels)}
    write_tensors(folder / WEIGHTS, {name: t.detach().cpu().numpy() for name, t in model.state_dict().items()})
    blocks = _with_codes(items, codes)
    head = next(blocks)
    write_rows(folder / ITEMS, head.schema, chain([head], blocks))
    write_json(
        folder / CONFIG,
        {
            "backbone": dataclasses.asdict(model.config),
            "widths": list(catalogue.widths),
            "digit": catalogue.digit,
            **({"action_sizes": list(catalogue.action_sizes)} if catalogue.action_sizes else {}),
            **config,
        },
    )
    (folder / SKIPS).unlink(missing_ok=True)  # of an earlier model
    if eval_skips is not None:
        write_tensors(folder / SKIPS, {"skip": eval_skips.skip_ML})
    seal(folder, stage)


def _with_codes(items: "Iterable[pa.Table] | pd.DataFrame", codes: Mapping[str, np.ndarray]) -> Iterator["pa.Table"]:
    """Append columns to the blocks of the table of items; texts are large_string, as pandas writes them."""
    import pyarrow as pa

    first = 0
    blocks: Iterable[pa.Table] = items
    if isinstance(items, pd.DataFrame):
        blocks = [pa.Table.from_pandas(items, preserve_index=False)]
    for table in blocks:
        columns = dict(zip(table.column_names, table.columns, strict=True))
        for name, column in columns.items():
            if pa.types.is_string(column.type):
                columns[name] = column.cast(pa.large_string())
        rows = slice(first, first + len(table))
        yield pa.table({**columns, **{name: numbers[rows] for name, numbers in codes.items()}})
        first += len(table)


def load_generator(folder: Path, device: torch.device | str = "cpu") -> Generator:
    """Rebuild the model that `save_generator` wrote, on `device`.

    Raises:
        UserError: a file is missing or damaged, or the files do not belong together.
    """
    if not (folder / MANIFEST).exists() and folder.exists():
        say(f"note: {folder} has no {MANIFEST}, as those of earlier versions: its files are not checked", error=True)
    config = read_json(folder / CONFIG)
    items = read_parquet(folder / ITEMS)
    weights = read_tensors(folder / WEIGHTS)
    try:
        # Nothing is built before the files are known to fit together: see saved_model.py.
        check_config(config)
        check_items(items, len(config["widths"]))
        codes = items[[f"code_{level + 1}" for level in range(len(config["widths"]))]].to_numpy()
        catalogue = Catalogue(
            codes,
            tuple(config["widths"]),
            config.get("digit", True),  # as in Sids.read
            content_IC=weights.get("catalogue.content_IC"),
            trained_I=weights.get("catalogue.trained_I"),
            action_sizes=tuple(config.get("action_sizes", ())),
        )
        for name, kind in {"backbone": BackboneConfig, **settings_types()}.items():
            if isinstance(config.get(name), Mapping):
                check_fields(kind, config[name], name)
        chosen = choose_strategies(config["strategy"], config)
        backbone = from_saved(BackboneConfig, config["backbone"], "backbone")
        check_sizes(config, chosen.settings, weights)
        network = chosen.network(config["pad_to"])
        model = network.build(backbone, catalogue)
        check_weights(weights, model.state_dict())
        model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        rule = chosen.eval_rule(NetworkTraits.of(network, backbone, catalogue))
        if rule is None and (folder / SKIPS).exists():
            raise ValueError(f"{SKIPS} is there, and strategy {chosen.text} has no `eval_rule` that reads it")
        eval_skips = rule(_read_skips(folder, catalogue.levels)) if rule else None
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise UserError(
            f"{folder} cannot be loaded: {shown(error)}",
            "its files are damaged or come from different runs or versions",
            "run `dvc checkout`, or `dvc repro` to train again",
        ) from None
    return Generator(
        model=model.to(device).eval(), catalogue=catalogue, items=items, config=config, eval_skips=eval_skips
    )


def load_retriever(folder: Path, device: torch.device | str = "cpu") -> Generator | None:
    """Rebuild the network over items that stage dense wrote, on `device`; None where `dense.enabled` was false.

    Raises:
        UserError: as `load_generator`.
    """
    if read_json(folder / CONFIG).get("enabled") is False:
        return None
    loaded = load_generator(folder, device)
    index, unused = read_index(folder, len(loaded.items), loaded.model.config.d_model)
    if unused:
        say(unused, error=True)
    return dataclasses.replace(loaded, index=index)


def _read_skips(folder: Path, levels: int) -> np.ndarray:
    """Read skip_ML, bool [M, L].

    Raises:
        ValueError: the array has another number of levels.
    """
    skip_ML = read_tensors(folder / SKIPS)["skip"]
    if skip_ML.ndim != 2 or skip_ML.shape[1] != levels:
        raise ValueError(f"{SKIPS} has shape {list(skip_ML.shape)}, a Semantic ID {levels} levels")
    return skip_ML
