"""The files that stages hand to each other: names, schemas, readers, writers, fingerprints.

The files are Parquet, safetensors, NumPy arrays and JSON; never pickle. Every writer gives the same bytes for the same
content: no times, no run ids, rows in a stated order. The readers name the file if it is missing or damaged.

Shape legend: I items, U users, N interactions of all users end to end, L levels, d width of the embeddings.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.actions import Actions
from pipeline.errors import unreadable
from pipeline.large_files import map_arrays, map_matrix, write_matrix, write_rows
from pipeline.manifest import fingerprint as fingerprint
from pipeline.manifest import seal, verify_present, writing
from pipeline.manifest import write_bytes as write_bytes

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

INTERACTIONS = Path("data/interactions")
EMBEDDINGS = Path("data/embeddings")
SIDS = Path("data/sids")
SPLITS = Path("data/splits")
GENERATOR = Path("models/generator")
REPORTS = Path("reports")
SCRATCH = Path(".sidpipe")  # git-ignored and no DVC output, so that checkpoints and unfinished shards survive here

MICROSECONDS = 1_000_000  # in a second
ACTIONS = "actions_NA.npy"  # in data/splits, only where the log has actions
TICKS = {"s": 1, "us": MICROSECONDS}  # time_unit of interactions.parquet and of the splits -> units in a second

BLOCK_ROWS = 100_000  # of a file that are in memory at once
CLOCK = ("training", "start", "times")  # keys of timings.json that metrics.json, a table of numbers, has none of


def read_json(path: Path, **needs: type | tuple[type, ...]) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        needs: keys that the object must have, with the types of their values.

    Raises:
        UserError: the file is missing or damaged, is no object, or lacks a key.
    """
    with _reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected an object")
        if wrong := [key for key, kind in needs.items() if not isinstance(content.get(key), kind)]:
            raise ValueError(f"its {', '.join(map(repr, wrong))} is missing or of another kind")
        return content


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with keys in the given order, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_parquet(path: Path, table: "pa.Table | pd.DataFrame", metadata: dict[str, str] | None = None) -> None:
    """Write a table as Parquet with fixed settings, so that equal rows give equal bytes.

    Args:
        metadata: goes into the file's schema and replaces the metadata of the table.
    """
    import pyarrow as pa

    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    write_rows(path, table.schema, [table], metadata)


def read_parquet(path: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    """Read a Parquet file. Raises UserError if it is missing or damaged."""
    import pandas as pd

    with _reading(path):
        return pd.read_parquet(path, columns=columns)


def read_blocks(path: Path, columns: list[str] | None = None) -> Iterator["pa.RecordBatch"]:
    """Yield the rows of a Parquet file in blocks of BLOCK_ROWS. Raises UserError if it is missing or damaged."""
    import pyarrow.parquet as pq

    with _reading(path), pq.ParquetFile(path, pre_buffer=False) as file:
        yield from file.iter_batches(BLOCK_ROWS, columns=columns)


def parquet_rows(path: Path) -> int:
    """Count the rows of a Parquet file. Raises UserError if it is missing or damaged."""
    from pyarrow.parquet import read_metadata

    with _reading(path):
        return int(read_metadata(path).num_rows)


def write_tensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write NumPy arrays as safetensors."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in sorted(tensors.items())}
    write_bytes(path, save(contiguous, metadata))


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, np.ndarray]:
    """Read the NumPy arrays of a safetensors file, or map them. Raises UserError if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    with _reading(path):
        try:
            return map_arrays(path) if mapped else load(path.read_bytes())
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        except (KeyError, TypeError, AttributeError) as error:  # BF16 and other types that NumPy does not have
            raise TypeError(f"it holds a tensor of a type that is not read here: {error}") from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Check a file; what the block finds wrong with it becomes a UserError that names it."""
    verify_present(path)
    try:
        yield
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise unreadable(path, error) from None


@dataclass(frozen=True)
class Interactions:
    """`Interactions` holds the paths of data/interactions/, which ingest writes.

    interactions.parquet: user_id int32, item_id int32, timestamp int64 (in `time_unit`), position int32 (0.. within the
        user), then the log's action columns; sorted by (user_id, position).
    users.parquet: user_id int32, raw_id str, sorted by user_id. items.parquet: item_id int32, raw_id str, text columns
        (title, categories, description if the dataset has them; null where missing), image (path inside the dataset
        folder, or null; several as `image_names` reads them), vector (list<float32>, only if the dataset brings item
        vectors); sorted by item_id.
    exposures.parquet, only with ingest.actions: user_id, item_id, timestamp, source_row int64, then those actions
        float64: all usable rows of these users and items, sorted by (user_id, timestamp, source_row).
    rejects.parquet: source str, line int64, reason str, row str (cut). cut.parquet: kind str (`user`, then `item`),
        raw_id str, rows int64 (of the log), interactions int64 (before the k-core) of what the filters left out; k_core
        and minimum in its metadata. ingest.json: counts before and after each filter, sha256 of each raw file,
        time_unit, time_format, and at least `users`, `items`, `interactions`.
    """

    folder: Path = INTERACTIONS

    @property
    def log(self) -> Path:
        return self.folder / "interactions.parquet"

    @property
    def exposures(self) -> Path:
        return self.folder / "exposures.parquet"

    @property
    def users(self) -> Path:
        return self.folder / "users.parquet"

    @property
    def items(self) -> Path:
        return self.folder / "items.parquet"

    @property
    def rejects(self) -> Path:
        return self.folder / "rejects.parquet"

    @property
    def cut(self) -> Path:
        return self.folder / "cut.parquet"

    @property
    def summary(self) -> Path:
        return self.folder / "ingest.json"

    @property
    def time_unit(self) -> str:
        """The unit of `timestamp`: `s`, or `us` where the log has times within a second.

        It is `s` where no ingest.json names it, as in the output of earlier versions.
        """
        return str(read_json(self.summary).get("time_unit", "s")) if self.summary.exists() else "s"

    @property
    def actions(self) -> Actions | None:
        """Return the columns of `ingest.actions` with their edges; None where it names none."""
        declared = read_json(self.summary).get("actions") if self.summary.exists() else None
        return Actions.of(declared) if declared else None

    @property
    def time_format(self) -> str:
        """Return the form of the log's times, one of `raw_times.FORMS`; empty where no ingest.json says it."""
        return str(read_json(self.summary).get("time_format") or "") if self.summary.exists() else ""


def image_names(cell: str | None) -> list[str]:
    """Return the paths in a cell of items.parquet's column `image`.

    A cell holds one path, or several with ";" or " > " between them, which is how ingest writes a list.
    """
    return [name for part in (cell or "").split(" > ") for text in part.split(";") if (name := text.strip())]


@dataclass(frozen=True)
class Embeddings:
    """`Embeddings` holds data/embeddings/: item vectors float32 [I, d], row = item_id, and facts about their encoder.

    A multimodal encoder also writes rejects.parquet there: raw_id, image and reason of each image that was refused.
    """

    vectors_Id: np.ndarray
    encoder: dict[str, Any]  # embeddings.json: name, revision, pooling, template, dtype, counts

    def write(self, folder: Path = EMBEDDINGS) -> None:
        self.write_blocks(self.vectors_Id.shape, [self.vectors_Id], self.encoder, folder)

    @staticmethod
    def write_blocks(
        shape: tuple[int, ...], blocks: Iterable[np.ndarray], encoder: dict[str, Any], folder: Path
    ) -> None:
        """Write the folder from vectors [I, d] that come in blocks of items."""
        write_matrix(folder / "embeddings.safetensors", "vectors", shape, blocks)
        write_json(folder / "embeddings.json", encoder)
        seal(folder, "embed")

    @classmethod
    def read(cls, folder: Path = EMBEDDINGS, *, mmap: bool = False) -> "Embeddings":
        """Read the folder. mmap: `vectors_Id` is a read-only map of the file, whose parts are read when used."""
        path = folder / "embeddings.safetensors"
        with _reading(path):
            vectors_Id = map_matrix(path, "vectors") if mmap else read_tensors(path).get("vectors")
            if vectors_Id is None:
                raise ValueError("it holds no tensor 'vectors'")
        return cls(vectors_Id, read_json(folder / "embeddings.json"))


@dataclass(frozen=True)
class Sids:
    """`Sids` holds data/sids/: one Semantic ID per item.

    codes_IL: int32 [I, L], row = item_id. widths: how many values each level may take. codebooks: the quantizer's
    tensors (`level_1` [codes, d], ...). quality: the content of quality.json, to which `write` adds `widths` and
    `digit`. digit: whether the last level is the deduplication digit, which makes every Semantic ID unique; without it,
    items may share one. Beside these files the stage writes levels.csv: the figures of quality.json per level, for
    plots.
    """

    codes_IL: np.ndarray
    widths: tuple[int, ...]
    codebooks: dict[str, np.ndarray]
    quality: dict[str, Any]
    digit: bool = True

    def write(self, folder: Path = SIDS) -> None:
        import pandas as pd

        frame = pd.DataFrame({"item_id": np.arange(len(self.codes_IL), dtype=np.int32)})
        for level in range(self.codes_IL.shape[1]):
            frame[f"code_{level + 1}"] = self.codes_IL[:, level].astype(np.int32)
        write_parquet(folder / "sids.parquet", frame)
        write_tensors(folder / "codebooks.safetensors", self.codebooks)
        write_json(folder / "quality.json", {"widths": list(self.widths), "digit": self.digit, **self.quality})
        seal(folder, "quantize")

    @classmethod
    def read(cls, folder: Path = SIDS) -> "Sids":
        frame = read_parquet(folder / "sids.parquet")
        quality = read_json(folder / "quality.json", widths=list)
        codes_IL = frame.drop(columns="item_id", errors="ignore").to_numpy(np.int32)
        if codes_IL.shape[1] != len(quality["widths"]):
            levels = f"{codes_IL.shape[1]} levels, and quality.json has {len(quality['widths'])} widths"
            raise unreadable(folder / "sids.parquet", ValueError(levels))
        books = read_tensors(folder / "codebooks.safetensors")
        return cls(codes_IL, tuple(quality["widths"]), books, quality, quality.get("digit", True))  # older: no key


@dataclass(frozen=True, kw_only=True)
class Splits:
    """`Splits` holds data/splits/: the sequences of all users end to end, and which interactions are targets.

    items_N int32 and timestamps_N int64 hold one user's sequence after the other's. timestamps_N is as precise as the
    log, in microseconds where `summary` has time_unit `us` and in seconds otherwise: read seconds by `seconds`, and
    compare timestamps_N only with each other. offsets int64 [U + 1]:
    the interactions of user u are [offsets[u], offsets[u + 1]). An index on this axis is a flat index. train_end int64
    [U]: flat index one past u's last training interaction. valid_target, test_target int64 [U]: flat index of the
    held-out interaction, -1 if u has none. A target's history is the at most `max_history` interactions before it in
    u's sequence, so a test history holds the validation item, as is usual in the field.
    """

    items_N: np.ndarray
    timestamps_N: np.ndarray
    offsets: np.ndarray
    train_end: np.ndarray
    valid_target: np.ndarray
    test_target: np.ndarray
    # splits.json: max_history, items (catalogue size), counts, tie shares, protocol; time_unit, only where it is us
    summary: dict[str, Any]
    # uint8 [N, A]: what the user did with each item, a column per entry of `actions`; None where the log says nothing
    actions_NA: np.ndarray | None = None

    ARRAYS = ("items_N", "timestamps_N", "offsets", "train_end", "valid_target", "test_target")

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    @property
    def max_history(self) -> int:
        return int(self.summary["max_history"])

    def write(self, folder: Path = SPLITS) -> None:
        for name in self.ARRAYS:
            with writing(folder / f"{name}.npy") as file:
                np.save(file, getattr(self, name), allow_pickle=False)
        if self.actions_NA is None:
            (folder / ACTIONS).unlink(missing_ok=True)  # of an earlier split
        else:
            with writing(folder / ACTIONS) as file:
                np.save(file, self.actions_NA, allow_pickle=False)
        write_json(folder / "splits.json", self.summary)
        seal(folder, "split")

    @classmethod
    def read(cls, folder: Path = SPLITS) -> "Splits":
        """Open the arrays memory-mapped, so that only those parts are read that are used."""
        arrays = {name: open_array(folder / f"{name}.npy") for name in cls.ARRAYS}
        summary = read_json(folder / "splits.json", max_history=int, items=int)
        actions_NA = open_array(folder / ACTIONS) if "actions" in summary else None
        return cls(**arrays, summary=summary, actions_NA=actions_NA)

    @property
    def actions(self) -> Actions | None:
        """Return what the columns of `actions_NA` mean; None where there are none."""
        return Actions.of(self.summary["actions"]) if "actions" in self.summary else None

    def actions_of(self, index: np.ndarray) -> np.ndarray | None:
        """Return the actions of these flat indices, uint8 [len(index), A]; None where the splits have none."""
        return None if self.actions_NA is None else np.asarray(self.actions_NA[index])

    def seconds(self, index: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the times of these flat indices in whole seconds since 1970, rounded down, int64."""
        times = np.asarray(self.timestamps_N[index])
        ticks = TICKS[self.summary.get("time_unit", "s")]
        return times if ticks == 1 else times // ticks

    def history_index(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the flat indices of the items of each target's history, end to end, and the offsets of the histories.

        sequences start at 0 and 5, max_history 3; positions 4, 6 -> index 1 2 3 | 5, offsets 0 3 4
        """
        starts = np.asarray(self.offsets)[np.searchsorted(self.offsets, positions, side="right") - 1]
        begin = np.maximum(starts, positions - self.max_history)
        offsets = np.concatenate([[0], np.cumsum(positions - begin)])
        return np.repeat(begin - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1]), offsets

    def targets(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (users, flat indices of their targets) of part `valid` or `test`, in user order."""
        target = {"valid": self.valid_target, "test": self.test_target}[part]
        users = np.flatnonzero(np.asarray(target) >= 0)
        return users, np.asarray(target)[users]

    def has_tie(self, positions: np.ndarray) -> np.ndarray:
        """Tell which of these flat indices follow an interaction of the same user with the same timestamp, bool."""
        # offsets 0 3 5: position 3 is user 1's first, so it has no tie, even if position 2 has the same timestamp.
        starts = np.asarray(self.offsets)[np.searchsorted(self.offsets, positions, side="right") - 1]
        before = np.maximum(positions - 1, 0)
        ties: np.ndarray = (positions > starts) & (self.timestamps_N[positions] == self.timestamps_N[before])
        return ties


@dataclass(frozen=True)
class TrainingPart:
    """A `TrainingPart` holds those arrays of `Splits` that say which interactions are for training.

    A stage that reads only these need not run again when other files of data/splits change.
    """

    items_N: np.ndarray
    offsets: np.ndarray
    train_end: np.ndarray

    @classmethod
    def read(cls, folder: Path = SPLITS) -> "TrainingPart":
        return cls(*(open_array(folder / f"{name}.npy") for name in ("items_N", "offsets", "train_end")))


def open_array(path: Path) -> np.ndarray:
    """Map an array of NumPy into memory. Raises UserError if the file is missing or damaged."""
    with _reading(path):
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
