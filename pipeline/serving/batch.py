"""Recommend to all users of the log, or to a list of them, into one Parquet file: in batches, resumable, atomic.

Finished parts lie in the project's scratch folder under a name that says what was asked, so that the same command goes
on where it was stopped. The output appears whole, when the last part is done.

Shape legend: W windows (users) of a batch, K beam width.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS, Interactions, Splits, fingerprint, read_parquet
from pipeline.artifacts import write_parquet as write_part
from pipeline.decoding.beam_search import Search
from pipeline.errors import UserError
from pipeline.generator import load_generator
from pipeline.locks import BusyError, alone
from pipeline.machine import pick_device, share_of_threads
from pipeline.ops.layout import uses_kernels
from pipeline.packing.histories import slices
from pipeline.packing.shape import Shape
from pipeline.printing import say, shown
from pipeline.progress import Progress
from pipeline.project import shared_scratch
from pipeline.raw_ids import dense_ids, find_ids
from pipeline.results.companions import companions
from pipeline.results.ranks import answers_by, check_fit, check_reports, drops_seen, model_hash
from pipeline.views.served import Served, served_by

BEAM = 20  # least width of the beam, as in `recommend`
PART_USERS = 4096  # users of one part; a stopped run loses at most one
BATCH_CPU = 256  # users of one search
BATCH_GPU = 1024
OTHER_FORMATS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xlsx", ".gz")  # which the output is not


@dataclass(frozen=True, kw_only=True)
class Settings:
    """These settings say what is recommended."""

    k: int
    filter_seen: bool
    beam: int


def recommend_all(  # noqa: PLR0913 - all but one by keyword
    output: Path,
    *,
    users: Path | None = None,
    k: int = 10,
    filter_seen: bool | None = None,
    beam: int | None = None,
    device: str = "auto",
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
) -> int:
    """Write a row per user and rank: user (raw id), rank (from 1), item (raw id), score (log-probability).

    Each user's history is all that the log has of them, as in `recommend --user`. Users come in the order of the log. A
    user to whom no item is left, because every item is in the history, has no row, and stderr counts such users.

    Args:
        users: a text file with one raw id per line; None: all users. Users that the log does not have are named on
            stderr and left out.
        filter_seen: leave out items of the history; None: as in the evaluation of the model, or leave them in where
            `reports` has none.
        beam: width of the search, by default the larger of `k` and 20.
        device: `auto`, `cpu` or `cuda`. A GPU searches all users in one shape; with `filter_seen` its beam is wider by
            `max_history` for everybody, on a CPU by the length of the user's history.

    Returns:
        The number of users with a row in the file.

    Raises:
        UserError: a file is missing, model and splits do not belong together, or no user is known.
    """
    width = max(k, BEAM) if beam is None else beam
    if k < 1 or width < k:
        raise UserError(
            f"k is {k} and the beam {width}", "a beam of that width finds no k items", "give 1 <= k <= beam"
        )
    _check_output(output)
    check_reports(reports, generator)
    chosen_device = pick_device(device, "--device")
    torch.set_num_threads(share_of_threads())
    loaded = load_generator(generator, chosen_device)
    loaded.require_items(generator)
    log = Splits.read(splits)
    check_fit(loaded, generator, log, splits)
    names, rows = _chosen(users, log, splits, Interactions(interactions).users)
    drop = drops_seen(reports) if filter_seen is None else filter_seen
    settings = Settings(k=min(k, len(loaded.items)), filter_seen=drop, beam=width)
    ranking = answers_by(reports)
    served = served_by(loaded, generator, ranking)
    models = [model_hash(generator), ranking, *map(model_hash, companions(generator, ranking).values())]
    key = fingerprint(models, fingerprint(splits), rows.tolist(), vars(settings), PART_USERS)[:16]
    folder = shared_scratch() / "recommend" / key
    try:
        with alone(folder.with_suffix(".lock"), None):
            parts = _write_parts(folder, served, log, names, rows, settings)
            ranked = _join(parts, output)
            shutil.rmtree(folder)
    except BusyError as busy:
        raise UserError(
            f"{busy.holder} makes the same recommendations",
            "both would write the same parts",
            "wait until it has ended",
        ) from None
    if ranked < len(rows):
        why = "every item is in their history; --with-seen ranks these too"
        say(f"{len(rows) - ranked:,} of {len(rows):,} users have no row: {why}", error=True)
    return ranked


def _check_output(output: Path) -> None:
    """Refuse a file that cannot be written, or whose name promises another format, before anything is computed."""
    if output.is_dir():
        raise UserError(
            f"{output} is a folder", "the recommendations are one file", "name a file, such as recs.parquet"
        )
    if output.suffix.lower() in OTHER_FORMATS:
        raise UserError(
            f"{output} would hold Parquet", "the recommendations are one Parquet file", "let its name end in .parquet"
        )
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    trial = folder / f"{output.name}.{os.getpid()}.trial"
    try:
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror}",
            "the recommendations are written there at the end",
            "name a file in a folder that may be written",
        ) from None


def _chosen(users: Path | None, log: Splits, splits: Path, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the raw ids of all users, and the dense ids of those that were asked for, in ascending order."""
    table = read_parquet(path)
    if len(table) != log.users:
        raise UserError(
            f"{path} has {len(table):,} users, {splits} has {log.users:,}",
            "they were made from different logs",
            "run `dvc repro`, or `dvc checkout`",
        )
    names = table["raw_id"].astype(str).to_numpy()
    if users is None:
        return names, np.arange(len(names))
    wanted = _lines(users)
    found = find_ids(wanted, table)
    unknown = [name for name, index in zip(wanted, found, strict=True) if index < 0]
    if len(unknown) == len(wanted):
        dense_ids(wanted[:1], table, "user", path)  # says which are near
    if unknown:
        some = ", ".join(map(shown, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        say(f"{len(unknown):,} of {len(wanted):,} users are not in the log and are left out: {some}", error=True)
    return names, np.unique(found[found >= 0])


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is not here", "it lists the users", "name a text file with one id per line") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {shown(error)}",
            "it lists the users",
            "name a UTF-8 text file with one id per line",
        ) from None
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} names no user", "it lists the users", "write one raw id per line")
    return lines


def _write_parts(
    folder: Path, served: Served, log: Splits, names: np.ndarray, rows: np.ndarray, settings: Settings
) -> list[Path]:
    """Write the parts that are missing, and return the paths of all."""
    starts = range(0, len(rows), PART_USERS)
    parts = [folder / f"part-{index:06d}.parquet" for index in range(len(starts))]
    done = [part for part in parts if part.exists()]
    finished = sum(
        min(PART_USERS, len(rows) - start) for start, part in zip(starts, parts, strict=True) if part in done
    )
    if done:
        say(f"{finished:,} of {len(rows):,} users are done already, by a run that was stopped", error=True)
    search = _Searcher(served, log, rows, settings)
    raw_items = served.generator.items["raw_id"].astype(str).to_numpy()
    with Progress("recommend", len(rows), "users", start=finished) as progress:
        for start, part in zip(starts, parts, strict=True):
            if part in done:
                continue
            some = rows[start : start + PART_USERS]
            items_WK, scores_WK = search(some, progress)
            write_part(part, _table(names[some], raw_items, items_WK, scores_WK))
    return parts


def _table(users: np.ndarray, raw_items: np.ndarray, items_WK: np.ndarray, scores_WK: np.ndarray) -> pd.DataFrame:
    """Return the rows of the output; -1 in `items_WK` is no item."""
    filled_WK = items_WK >= 0
    window_R, column_R = np.nonzero(filled_WK)
    return pd.DataFrame(
        {
            "user": users[window_R],
            "rank": (column_R + 1).astype(np.int32),
            "item": raw_items[items_WK[filled_WK]],
            "score": scores_WK[filled_WK].astype(np.float32),
        }
    )


class _Searcher:
    """A `_Searcher` finds the best items of users of the log."""

    def __init__(self, served: Served, log: Splits, rows: np.ndarray, settings: Settings):
        self.served = served
        self.loaded = loaded = served.generator
        self.log = log
        self.settings = settings
        offsets = np.asarray(log.offsets)
        self.longest = int(loaded.config["max_history"])
        self.ends = offsets[1:]
        self.lengths = np.minimum(np.diff(offsets), self.longest)
        self.on_kernels = uses_kernels(loaded.catalogue.codes_IL.device)
        self.search: Search | None = None
        # A batch's shapes depend on the tokens that are skipped, so that no recording would serve two batches.
        if self.on_kernels and loaded.eval_skips is None:
            batches = [
                self.lengths[batch]
                for start in range(0, len(rows), PART_USERS)
                for batch in self._batches(rows[start : start + PART_USERS])
            ]
            width = served.width(settings.beam) + (self.longest if settings.filter_seen else 0)
            if batches:
                self.search = Search(
                    loaded.model, width, constrained=True, shape=Shape.of(batches, self.longest), longest=self.longest
                )

    def __call__(self, users: np.ndarray, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
        """Return (item ids [W, k], -1 for none; scores [W, k]) of these users."""
        k = self.settings.k
        items_WK = np.full((len(users), k), -1, np.int64)
        scores_WK = np.zeros((len(users), k))
        row_of = {user: row for row, user in enumerate(users.tolist())}
        for batch in self._batches(users):
            rows = [row_of[user] for user in batch.tolist()]
            found, scores = self._best(batch)
            items_WK[rows, : found.shape[1]] = found[:, :k]
            scores_WK[rows, : found.shape[1]] = scores[:, :k]
            progress.update(len(batch))
        return items_WK, scores_WK

    def _batches(self, users: np.ndarray) -> list[np.ndarray]:
        """Return the users that have a history, in batches: on a CPU of one length each."""
        users = users[self.lengths[users] > 0]
        if self.on_kernels:
            return [users[start : start + BATCH_GPU] for start in range(0, len(users), BATCH_GPU)]
        batches = []
        for length in np.unique(self.lengths[users]):
            alike = users[self.lengths[users] == length]
            batches += [alike[start : start + BATCH_CPU] for start in range(0, len(alike), BATCH_CPU)]
        return batches

    def _best(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (item ids [W, K], negative for none; scores [W, K]) of one batch, K at most k."""
        lengths = self.lengths[users]
        index, offsets = slices(self.ends[users] - lengths, lengths)
        model, skips = self.loaded.model, self.loaded.eval_skips
        seen = self.longest if self.on_kernels else int(lengths[0])
        outputs = self.served.generate(
            np.asarray(self.log.items_N)[index],
            offsets,
            beam=self.settings.beam,
            drop_seen=seen if self.settings.filter_seen else 0,
            search=self.search,
            times=self.log.seconds(index) if model.wants_times else None,
            actions=self.log.actions_of(index) if model.action_sizes else None,
            kept=skips.kept(index, offsets) if skips else None,
        )
        k = self.settings.k
        return _closed(outputs.items_WK, outputs.scores_WK, k)


def _closed(items_WK: np.ndarray, scores_WK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k real items of each row; slots that name no item follow.

    items 7 -2 4, k 2 -> 7 4
    """
    column_WK = np.argsort(items_WK < 0, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(items_WK, column_WK, 1), np.take_along_axis(scores_WK, column_WK, 1)


def _join(parts: list[Path], output: Path) -> int:
    """Write all parts into one file beside `output`, rename it, and return the number of users in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    schema: Any = pa.schema(
        [("user", pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())]
    )
    ranked = 0
    try:
        with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
            for part in parts:
                table: pa.Table = pq.read_table(part)
                ranked += int((table["rank"].to_numpy() == 1).sum())
                writer.write_table(table.cast(schema))
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return ranked
