"""Stage ingest: clean a raw log, number its users and items, and write data/interactions/ (`artifacts.Interactions`).

Ids are dense and follow the source: users are in the order of their first interaction, items in the order of the item
file or, without one, of their first interaction.
"""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pipeline.actions import Actions
from pipeline.artifacts import INTERACTIONS, SCRATCH, Interactions, write_json
from pipeline.errors import UserError
from pipeline.ingest.clean import Cleaned, clean
from pipeline.ingest.columns import ITEM_NAMES
from pipeline.ingest.config import IngestConfig
from pipeline.ingest.dialect import find_dialect
from pipeline.ingest.encodings import settle_encoding
from pipeline.ingest.engines import Rows, connect
from pipeline.ingest.item_file import StagedItems, stage_items
from pipeline.ingest.recipes import K_CORE, MINIMUM, RECIPES
from pipeline.ingest.rejects import SCHEMA, Rejects
from pipeline.ingest.report import report
from pipeline.ingest.sources import Limits, RawFile, Source, find_source
from pipeline.ingest.staging import LogSettings, StagedLog, stage_log
from pipeline.ingest.tracked import lacking
from pipeline.ingest.unknown import add_unknown
from pipeline.ingest.vectors import read_vectors, vector_column
from pipeline.ingest.where import RowFilter
from pipeline.large_files import write_rows
from pipeline.manifest import seal
from pipeline.printing import say
from pipeline.raw_times import TimeColumn

DEMO_SEED = 42  # not params.seed: runs with different seeds are compared on the same users and items


class IngestParams(Protocol):
    """`IngestParams` declares what the stage reads of params.yaml."""

    @property
    def dataset(self) -> str: ...

    @property
    def ingest(self) -> IngestConfig: ...


@dataclass(frozen=True, kw_only=True)
class Staged:
    """The raw files as typed Parquet, and what was left out of them.

    items: None without an item file. unknown: the items that it does not list and that stay, each with its rows.
    time_format: the form of the log's times.
    """

    log: StagedLog
    items: StagedItems | None
    rejects: Rejects
    rows: RowFilter
    unknown: Counter[str]
    time_format: str


def run(params: IngestParams, *, output: Path = INTERACTIONS, scratch: Path = SCRATCH) -> dict[str, Any]:
    """Read the raw log of `params.dataset` and write `output`, whole or not at all.

    Returns:
        The content of ingest.json.

    Raises:
        UserError: the log or its settings are wrong, or the disk is full.
    """
    with _workspace(scratch / "ingest") as work:
        new = work / "output"
        source = _find(params, new)
        staged = _stage(params, source, work, scratch / "rejects.parquet")
        summary = _clean_and_write(params, source, staged, work, new)
        _replace(output, new)
    if params.dataset != "demo" and (missing := lacking(Path(), Path(params.ingest.path))):
        say(f"{missing.reason}; before you queue an experiment (--queue, --temp): {missing.cure}")
    report(summary, staged.rejects.by_reason([file.name for file in source.log]), source, output)
    return summary


@contextmanager
def _workspace(folder: Path) -> Iterator[Path]:
    """Make an empty folder and remove it at the end; an error of the disk becomes a UserError."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        (folder / "output").mkdir(parents=True)
        yield folder
    except OSError as error:
        raise UserError(
            f"could not read or write {error.filename or folder}: {error.strerror or error}",
            "nothing that was there before was changed",
            "free some space or mend the permissions, then run the same command again",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find(params: IngestParams, new: Path) -> Source:
    """Find the raw files and, for those without a recipe, how they are written."""
    config = params.ingest
    found = find_source(params.dataset, *_raw_path(params, new))
    source = replace(found, log=_limited(found.log, config), items=_limited(found.items, config))
    if params.dataset in RECIPES:
        return replace(source, log=[*map(settle_encoding, source.log)], items=[*map(settle_encoding, source.items)])
    log = partial(find_dialect, mapping=config.mapping, delimiter=config.delimiter, header=config.header)
    items = partial(find_dialect, mapping=config.mapping, header=None)
    return replace(
        source,
        log=[log(file, encoding=config.encoding) for file in source.log],
        items=[items(file, encoding=config.encoding) for file in source.items],
    )


def _limited(files: Sequence[RawFile], config: IngestConfig) -> list[RawFile]:
    limits = Limits(config.max_line_bytes, config.max_file_bytes)
    return [replace(file, limits=limits) for file in files]


def _raw_path(params: IngestParams, output: Path) -> tuple[str, str]:
    """Return `ingest.path` and `ingest.files`; the demo's log is simulated first, into `raw` of the output."""
    if params.dataset != "demo":
        return params.ingest.path, params.ingest.files
    from pipeline.ingest.demo import generate_demo_log

    return str(generate_demo_log(Path(params.ingest.path) / "scenario.yaml", DEMO_SEED, output / "raw")), ""


def _stage(params: IngestParams, source: Source, work: Path, saved_rejects: Path) -> Staged:
    """Write the raw files as typed Parquet into `work`.

    Raises:
        UserError: too many rows are bad (`saved_rejects` then lists them), or the log has no rows.
    """
    config = params.ingest
    recipe = RECIPES.get(params.dataset)
    items = None
    rows = RowFilter(config.filters)
    with Rejects(work / "rejects.parquet") as rejects:
        if source.items:
            items = stage_items(
                source.items,
                source.items_name,
                recipe,
                config.mapping,
                rejects,
                path=work / "items.parquet",
                null_words=config.null_words,
            )
        settings = LogSettings(
            mapping={**(recipe.log_columns if recipe else {}), **config.mapping},
            minimum=_minimum(params),
            actions=tuple(config.actions),
            guess_actions=recipe is None,
            null_words=config.null_words,
            rows=rows,
            keep_unknown=config.unknown_items == "keep",
        )
        times = TimeColumn(config.time_unit)
        log = stage_log(source.log, settings, rejects, work / "log.parquet", items=items, times=times)
        if times.majority != times.form:
            # The first rows write times in another form than most rows: the form of most rows counts, so read again.
            times = TimeColumn(config.time_unit, times.majority)
            rejects.forget([file.name for file in source.log])
            rows = RowFilter(config.filters)
            settings = replace(settings, rows=rows)
            log = stage_log(source.log, settings, rejects, work / "log.parquet", items=items, times=times)

    # The item file and the log are judged apart: neither may lose more than its share of rows.
    names = [file.name for file in source.log]
    read = [([file.name for file in source.items], items.read)] if items else []
    for sources, count in [*read, (names, log.read - rows.not_wanted)]:
        error = rejects.too_many(sources, count, config.max_reject_rate, saved_rejects)
        if error:
            shutil.move(rejects.path, saved_rejects)
            raise error
    if not log.columns:
        raise UserError(
            f"{', '.join(names)}: the log has no rows",
            "without interactions there is nothing to learn from",
            "check that ingest.path is the right file, and that the file was written to the end",
        )
    if rows.not_wanted == log.read:
        raise UserError(
            "no row of the log is wanted by ingest.where",
            "; ".join(rows.found(name) for name in rows.where),
            "mend ingest.where, or empty it: -S ingest.where=",
        )
    unknown: Counter[str] = Counter()
    if items and config.unknown_items == "keep":
        unknown = add_unknown(items, log)
    return Staged(log=log, items=items, rejects=rejects, rows=rows, unknown=unknown, time_format=times.form or "")


def _clean_and_write(params: IngestParams, source: Source, staged: Staged, work: Path, output: Path) -> dict[str, Any]:
    """Write the new output folder and return the content of its ingest.json."""
    log, items = staged.log, staged.items
    rejects, rows = staged.rejects, staged.rows
    files = Interactions(output)
    vectors = read_vectors(source.vectors, items) if source.vectors else None
    with connect(params.ingest, work / "engine") as engine:
        cleaned = clean(
            engine,
            log.path,
            items.path if items else None,
            _minimum(params),
            _k_core(params),
            repeats=params.ingest.repeats,
            cut=files.cut,
            exposed=tuple(params.ingest.actions),
        )
        tables = [(files.log, cleaned.log), (files.users, cleaned.users), (files.items, _items(cleaned.items, vectors))]
        if cleaned.exposures:
            tables.append((files.exposures, cleaned.exposures))
        for path, rows_found in tables:
            write_rows(path, rows_found.schema, rows_found.blocks())
        write_rows(files.rejects, SCHEMA, rejects.blocks(params.ingest.memory_limit))
    summary = {
        "dataset": params.dataset,
        **_counts(cleaned),
        "time_format": staged.time_format,
        "rows_read": log.read,
        "rejected": rejects.total([file.name for file in source.log]),
        "items_listed": items.read if items else None,
        "rejects": rejects.by_reason(),
        "not_numbers": dict(log.not_numbers),
        "ids_trimmed": log.trimmed | ({f"item of {items.source}": items.trimmed} if items and items.trimmed else {}),
        "minimum": _minimum(params),
        "k_core": _k_core(params),
        "k_core_passes": cleaned.rounds,
        "steps": cleaned.steps,
        "columns": log.columns,
        "vector_width": vectors.shape[1] if vectors is not None else None,
        "sha256": source.sha256(),
    }
    if items and items.copies:
        summary["item_copies"] = items.copies
    if params.ingest.actions:
        edges = params.ingest.action_edges
        summary["actions"] = Actions(tuple(edges), tuple(edges.values())).as_json()
    if rows.where:
        summary |= {"where": rows.where, "not_wanted": rows.not_wanted, "never_seen": rows.never_seen()}
    if staged.unknown:
        summary["unknown_items"] = {"items": len(staged.unknown), "rows": staged.unknown.total()}
    write_json(files.summary, summary)
    seal(output, "ingest")
    return summary


def _counts(cleaned: Cleaned) -> dict[str, int | str]:
    left = cleaned.steps[-1]
    first, last = cleaned.span
    return {
        "users": left["users"],
        "items": left["items"],
        "interactions": left["interactions"],
        "first_timestamp": first,
        "last_timestamp": last,
        "time_unit": cleaned.time_unit,
    }


def _k_core(params: IngestParams) -> int:
    recipe = RECIPES.get(params.dataset)
    return (recipe.k_core if recipe else K_CORE) if params.ingest.k_core == "recipe" else params.ingest.k_core


def _minimum(params: IngestParams) -> dict[str, float]:
    return params.ingest.minimum or MINIMUM.get(params.dataset, {})


def _items(items: Rows, vectors: np.ndarray | None) -> Rows:
    """Return the rows of items.parquet; the usual text columns are there even if the dataset has none."""
    absent = [name for name in ITEM_NAMES if name != "item" and name not in items.schema.names]

    def changed(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for block in blocks:
            source_rows = block["source_row"].to_numpy()
            block = block.drop_columns("source_row")
            for name in absent:
                block = block.append_column(name, pa.nulls(len(block), pa.string()))
            if vectors is not None:
                block = block.append_column("vector", vector_column(vectors, source_rows))
            yield block

    fields = [field for field in items.schema if field.name != "source_row"]
    fields += [pa.field(name, pa.string()) for name in absent]
    if vectors is not None:
        fields.append(pa.field("vector", pa.list_(pa.float32())))
    return items.mapped(pa.schema(fields), changed)


def _replace(old: Path, new: Path) -> None:
    """Replace the folder `old` by `new`; whatever fails or interrupts this leaves `old` as it was."""
    old.parent.mkdir(parents=True, exist_ok=True)
    beside = old.with_name(f".{old.name}.new")
    before = old.with_name(f".{old.name}.old")
    for folder in (beside, before):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        shutil.move(new, beside)
        if old.exists():
            old.rename(before)
        beside.rename(old)
    except BaseException:
        if before.exists() and not old.exists():
            before.rename(old)
        raise
    finally:
        for folder in (beside, before):
            shutil.rmtree(folder, ignore_errors=True)
