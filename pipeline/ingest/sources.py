"""Finding a dataset's raw files under `ingest.path`: what the stage reads, in which order, and under which names."""

import glob
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.ingest.recipes import CSV, JSONL, PARQUET, RECIPES, TSV, DatasetRecipe, Format

FORMATS = {".csv": CSV, ".tsv": TSV, ".jsonl": JSONL, ".ndjson": JSONL, ".json": JSONL, ".parquet": PARQUET}
VECTORS = "*_embeddings.npy"


@dataclass(frozen=True)
class RawFile:
    """A file to read. `name` is its path inside the dataset, so that outputs do not depend on where that lies."""

    path: Path
    name: str
    format: Format

    @property
    def gzipped(self) -> bool:
        return self.path.suffix == ".gz"


@dataclass(frozen=True)
class Source:
    """The raw files of a dataset; `vectors_found` lists all own-vector files, of which one is used if it is alone."""

    log: list[RawFile]
    items: RawFile | None = None
    vectors_found: list[Path] = field(default_factory=list)

    @property
    def vectors(self) -> Path | None:
        return self.vectors_found[0] if len(self.vectors_found) == 1 else None

    def sha256(self) -> dict[str, str]:
        """Hex digest of every file that is read, by name."""
        paths = {file.name: file.path for file in [*self.log, *([self.items] if self.items else [])]}
        if self.vectors:
            paths[self.vectors.name] = self.vectors
        return {name: sha256(path) for name, path in paths.items()}


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_source(dataset: str, path: str) -> Source:
    """The files of `dataset` under `path` (a file, a glob or a folder).

    Raises:
        UserError: a file is missing, its format is not known, or it is not clear which file is meant.
    """
    return _find_recipe(dataset, RECIPES[dataset], Path(path)) if dataset in RECIPES else _find_custom(path)


def _find_recipe(dataset: str, recipe: DatasetRecipe, path: Path) -> Source:
    folder = path.parent if path.is_file() else path
    found = []
    for pattern, form in ((recipe.log, recipe.log_format), (recipe.items, recipe.item_format)):
        matches = sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))
        if not matches:
            raise UserError(
                f"{pattern.rstrip('*')} is not in {folder}",
                f"the recipe {dataset} reads it",
                f"set ingest.path to the folder that holds it, or run `python -m pipeline fetch`, which puts the "
                f"publisher's files into data/raw/{dataset}",
            )
        file = _only(matches, folder)
        found.append(RawFile(file, _name(file, folder), form))
    return Source([found[0]], found[1])


def _find_custom(path: str) -> Source:
    if Path(path).is_dir():
        return _find_folder(Path(path))
    if Path(path).is_file():
        return Source([RawFile(Path(path), Path(path).name, _format(Path(path)))])
    files = [Path(p) for p in sorted(glob.glob(path, recursive=True)) if Path(p).is_file()]
    if not files:
        raise UserError(
            f"no file at {path}",
            "ingest.path names the raw log: a file, a glob or a folder",
            "set ingest.path to your log",
        )
    parts = Path(path).parts  # names count from the folder before the first wildcard
    base = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    return Source([RawFile(file, _name(file, base), _format(file)) for file in files])


def _find_folder(folder: Path) -> Source:
    log, items = _known(folder, "interactions.*"), _known(folder, "items.*")
    if not log:
        listing = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
        raise UserError(
            f"no interactions.* in {folder}",
            f"the log of a dataset folder has that name; found {listing}",
            "rename your log, or set ingest.path to the file itself",
        )
    if len(items) > 1:
        _only([file.path for file in items], folder)
    return Source(log, items[0] if items else None, sorted(folder.glob(VECTORS)))


def _known(folder: Path, pattern: str) -> list[RawFile]:
    """Files of a known format; others beside them, such as interactions.csv.dvc, are not the log."""
    files = (file for file in sorted(folder.glob(pattern)) if _suffix(file) in FORMATS)
    return [RawFile(file, file.name, _format(file)) for file in files]


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise UserError(
            f"{' and '.join(f.name for f in files)} are both in {folder}",
            "only one of them can be meant",
            "move the other away",
        )
    return files[0]


def _suffix(file: Path) -> str:
    """`log.2024.csv.gz` -> `.csv`"""
    return file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix


def _format(file: Path) -> Format:
    if _suffix(file) not in FORMATS:
        raise UserError(
            f"the format of {file} is not known",
            "it is told from the end of the file's name",
            f"use one of {', '.join(FORMATS)}, plain or with .gz",
        )
    return FORMATS[_suffix(file)]
