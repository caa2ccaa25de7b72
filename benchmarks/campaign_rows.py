"""Read the rows of a campaign, resolve each to parameters, name it by a key, and find the results that exist.

A campaign file is a YAML list, ordered by worth. An entry has these fields:

    group, arm: where the result stands in a table
    data: name of a folder with prepared inputs, below --data
    presets: applied in this order to presets/demo.yaml; then `set`, a mapping from dotted keys to values
    seeds: one row for each
    measure: quality (rows may share a GPU), cost (the row has the machine alone) or trial (validation alone: the test
        is not read, so that settings may be chosen by it)
    seconds: about how long a run takes alone
    sids: shared (made with seed 42, the same for all seeds) or remade (made with the row's seed)

A row's key is a hash of everything that shapes its result: parameters, data and evaluation. Neither the code nor how
the machine is used is part of it, so a result says at which commit it was made.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline.artifacts import Embeddings, Splits, fingerprint
from pipeline.config import Params, build_params
from pipeline.errors import UserError, nearest
from pipeline.manifest import write_bytes
from pipeline.results.parameters import flatten, value_text
from pipeline.results.shaping import shaping
from pipeline.training.code import code_fingerprint
from pipeline.yaml_files import parse_yaml, read_text

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "presets"
RESULTS = ROOT / "docs/results"
SID_SEED = 42
Measure = Literal["quality", "cost", "trial"]
FIELDS = {"group", "arm", "data", "presets", "set", "seeds", "measure", "seconds", "sids"}
OPTIONAL = {"set": {}, "measure": "quality", "sids": "shared"}
# Settings that shape no result of a run on prepared inputs.
BESIDE = (
    *("track", "ingest", "embed", "dataset", "split", "quantize.device", "dense.index"),
    *("train.device", "train.threads", "train.checkpoint_every", "evaluate.batch_users", "evaluate.bootstrap_samples"),
)
BEGIN = '{"key": '  # every record's line begins so, also one that was cut while it was written
Record = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """Prepared inputs: a folder with `interactions/items.parquet`, `splits/`, and `embeddings/` or one `*.npy`.

    The folder is `data/` of a project, or a copy of what is needed of it; the `*.npy` has the item vectors, which may
    be missing where no row reads them. Semantic IDs lie below `sids/`, under a hash of what they were made from.
    """

    name: str
    folder: Path

    @cached_property
    def splits(self) -> Splits:
        return Splits.read(self.folder / "splits")

    def vectors(self) -> np.ndarray:
        """Return the item vectors, float32 [items, width]. Raises UserError where there are none, or several files."""
        if (self.folder / "embeddings").is_dir():
            return Embeddings.read(self.folder / "embeddings").vectors_Id
        found = sorted(self.folder.glob("*.npy"))
        if len(found) != 1:
            raise UserError(
                f"{self.folder} has {len(found)} files *.npy and no folder embeddings",
                "the item vectors of a campaign lie there",
                "copy data/embeddings of a finished project there",
            )
        return np.asarray(np.load(found[0], allow_pickle=False), np.float32)

    def hash_for(self, row: "Row") -> str:
        """Return a hash of what the row reads: sequences, targets, and item vectors unless it is of ids alone.

        Raises:
            UserError: as `vectors`, where the row reads them.
        """
        return self._with_vectors if row.reads_vectors else self._of_ids

    @cached_property
    def _with_vectors(self) -> str:
        return self._hash(np.ascontiguousarray(self.vectors()).tobytes())

    @cached_property
    def _of_ids(self) -> str:
        return self._hash(b"")

    def _hash(self, vectors: bytes) -> str:
        digest = hashlib.sha256(vectors)
        for name in Splits.ARRAYS:
            digest.update(np.ascontiguousarray(getattr(self.splits, name)).tobytes())
        return digest.hexdigest()

    def check(self, row: "Row") -> None:
        """Raise UserError unless the splits were made as the row's parameters say."""
        split = row.params.split
        for name, wanted in (("protocol", split.protocol), ("ties", split.ties)):
            if (made := self.splits.summary.get(name, wanted)) != wanted:
                raise UserError(
                    f"{row.name}: split.{name} is {wanted}, and {self.folder}/splits was made with {made}",
                    "a campaign does not split the log again",
                    f"prepare another folder of data with split.{name}={wanted}",
                )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row is one run: an arm of a group with one seed, measured for quality or for cost."""

    group: str
    arm: str
    data: str
    presets: tuple[str, ...]
    changes: Mapping[str, Any]
    seed: int
    measure: Measure
    seconds: float
    sid_seed: int
    params: Params

    @property
    def name(self) -> str:
        words = f" with {self.words}" if self.measure == "trial" else ""
        return f"{self.group}: {self.arm}, seed {self.seed}, {self.measure}{words}"

    @property
    def words(self) -> str:
        """Return what `set` changes, as words of `dvc exp run`."""
        return " ".join(f"{key}={value_text(value)}" for key, value in self.changes.items()) or "its presets alone"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return what shapes the result, under dotted names; a later version of the code gives a row the same key."""
        flat = flatten(self.params)
        of_model = shaping(flat, self.params.strategy, BESIDE)
        return {**of_model, "split.max_history": flat["split.max_history"], "sid_seed": self.sid_seed}

    @property
    def reads_vectors(self) -> bool:
        """Return whether the row reads item vectors: for its Semantic IDs, or as the content of its items."""
        return not self.params.backbone.over_items or self.params.backbone.content

    def key(self, data: Data) -> str:
        """Return 16 hex digits of the hash of parameters, data and evaluation. Raises UserError as `Data.hash_for`."""
        return fingerprint(self.settings, data.hash_for(self))[:16]

    @property
    def sids_name(self) -> str:
        """Return the name of the folder of the row's Semantic IDs."""
        quantize = {key: value for key, value in flatten(self.params).items() if key.startswith("quantize.")}
        del quantize["quantize.device"]
        return fingerprint(quantize, self.sid_seed)[:16]


def read_rows(path: Path) -> list[Row]:
    """Read a campaign file.

    Raises:
        UserError: the file is missing or no list of entries, or an entry has unknown or missing fields, unknown presets
            or refused parameters.
    """
    entries = parse_yaml(read_text(path, "it lists the rows of the campaign", "name another file"), str(path))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} is no list of rows", "a campaign is a YAML list", "see benchmarks/campaigns/")
    rows = [row for number, entry in enumerate(entries, 1) for row in _rows(entry, f"{path}, row {number}")]
    if not rows:
        raise UserError(f"{path} has no row", "there is nothing to run", "see benchmarks/campaigns/")
    return rows


def _rows(entry: dict[str, Any], where: str) -> Iterable[Row]:
    wrong = [f"unknown field '{name}', {nearest(str(name), FIELDS)}" for name in entry if name not in FIELDS]
    wrong += [f"the field '{name}' is missing" for name in sorted(FIELDS - set(OPTIONAL) - set(entry))]
    entry = {**OPTIONAL, **entry}
    for name, kind in (("presets", list), ("seeds", list), ("set", dict), ("seconds", int | float)):
        if name in entry and not isinstance(entry[name], kind):
            wrong.append(f"{name} is {entry[name]!r}")
    for name, allowed in (("measure", ("quality", "cost", "trial")), ("sids", ("shared", "remade"))):
        if entry[name] not in allowed:
            wrong.append(f"{name} is {entry[name]!r}, expected {' or '.join(allowed)}")
    if not wrong:
        texts = (("preset", entry["presets"]), ("key of `set`", entry["set"]))
        wrong += [f"the {what} {one!r} is no text" for what, values in texts for one in values if type(one) is not str]
        if type(entry["seconds"]) is bool or not 0 <= entry["seconds"] < math.inf:
            wrong.append(f"seconds is {entry['seconds']!r}, expected a number from 0 on")
    if wrong:
        raise UserError("\n".join(f"{where}: {line}" for line in wrong), "nothing was run", "mend the file")
    for seed in entry["seeds"]:
        params = resolve(entry["presets"], {**entry["set"], "seed": seed}, where)
        yield Row(
            group=str(entry["group"]),
            arm=str(entry["arm"]),
            data=str(entry["data"]),
            presets=tuple(entry["presets"]),
            changes=entry["set"],
            seed=seed,
            measure=entry["measure"],
            seconds=float(entry["seconds"]),
            sid_seed=SID_SEED if entry["sids"] == "shared" else seed,
            params=params,
        )


def resolve(presets: Iterable[str], changes: Mapping[str, Any], where: str) -> Params:
    """Return the parameters of these presets and changes, on top of presets/demo.yaml.

    Raises:
        UserError: a preset or key does not exist, or the parameters are refused.
    """
    known = {path.stem: path for path in PRESETS.glob("*.yaml")}
    raw: dict[str, Any] = {}
    for name in ["demo", *presets]:
        if name not in known:
            raise UserError(f"{where}: preset '{name}' is not known, {nearest(name, known)}", "nothing was run")
        for section, value in _yaml(known[name]).items():
            both = isinstance(value, dict) and isinstance(raw.get(section), dict)
            raw[section] = {**raw[section], **value} if both else deepcopy(value)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        target = raw.get(section) if section else raw
        if not isinstance(target, dict):
            raise UserError(f"{where}: '{key}' of `set` names no section, {nearest(section, raw)}", "nothing was run")
        target[name] = value
    return build_params(raw, where)


@cache
def _yaml(path: Path) -> dict[str, Any]:
    content = parse_yaml(read_text(path, "it is a preset", "restore it"), str(path))
    return content if isinstance(content, dict) else {}


# ------------------------------------------------------------------------------------------------------- results


class Results:
    """The results of campaigns: `campaign.jsonl` with a line per result, and `ranks/KEY.npz`. Nothing is deleted."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "campaign.jsonl"

    def records(self) -> list[Record]:
        """Return all records, oldest first. A line that was cut while it was written is left out.

        Raises:
            UserError: a line was not written by `append`.
        """
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        lines = text.split("\n")
        records = []
        for number, line in enumerate(lines, 1):
            try:
                if line:
                    records.append(json.loads(line))
            except ValueError:
                if not line.startswith(BEGIN) and not BEGIN.startswith(line):
                    raise UserError(
                        f"{self.path}, line {number} is no JSON", "it was damaged or edited", "restore the file"
                    ) from None
        return records

    def append(self, record: Record, ranks: bytes | None = None) -> None:
        """Write the ranks, then the record as one line that is on the disk when this returns."""
        if ranks is not None:
            write_bytes(self.ranks(record["key"]), ranks)
        self.folder.mkdir(parents=True, exist_ok=True)
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        line = ("" if whole else "\n") + json.dumps({"key": record["key"], **record}) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def ranks(self, key: str) -> Path:
        return self.folder / "ranks" / f"{key}.npz"


def records_of(row: Row, records: Iterable[Record], key: str | None) -> list[Record]:
    """Return the records of a row, the newest last; see `state`."""
    return [
        record
        for record in records
        if record["measure"] in (row.measure, "quality" if row.measure == "trial" else row.measure)
        and (
            record["key"] == key
            if key
            else (record["settings_key"], record["data"]) == (fingerprint(row.settings), row.data)
        )
    ]


def state(row: Row, records: Iterable[Record], key: str | None, engine: str | None = None) -> tuple[str, Record | None]:
    """Return `done`, `stale` or `missing`, and the newest record.

    A cost is stale where the code of training is not the code that it was measured with. A row for quality has its
    validation too, so that it is a trial of the same settings.

    Args:
        key: None where the data is not here; then parameters and the name of the data decide.
        engine: fingerprint of today's code; None: of this checkout.
    """
    found = records_of(row, records, key)
    if not found:
        return "missing", None
    if row.measure != "cost" or found[-1]["engine"] == (engine or code_fingerprint("train")):
        return "done", found[-1]
    return "stale", found[-1]
