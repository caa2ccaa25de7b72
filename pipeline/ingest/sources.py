"""Find a dataset's raw files under `ingest.path`: which files the stage reads, in which order, under which names."""

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
    """A file to read. `name` is its path inside the dataset's folder: outputs do not depend on where the folder is."""

    path: Path
    name: str
    format: Format

    @property
    def gzipped(self) -> bool:
        return self.path.suffix == ".gz"


@dataclass(frozen=True)
class Source:
    """The raw files of a dataset.

    vectors_found: all files of item vectors (`VECTORS`); a file is used only if it is the only one.
    """

    log: list[RawFile]
    items: RawFile | None = None
    vectors_found: list[Path] = field(default_factory=list)

    @property
    def vectors(self) -> Path | None:
        """Return the file of item vectors that is used, if any."""
        return self.vectors_found[0] if len(self.vectors_found) == 1 else None

    def sha256(self) -> dict[str, str]:
        """Return the hex digest of every file that is read, by name."""
        paths = {file.name: file.path for file in [*self.log, *([self.items] if self.items else [])]}
        if self.vectors:
            paths[self.vectors.name] = self.vectors
        return {name: sha256(path) for name, path in paths.items()}


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_source(dataset: str, path: str) -> Source:
    """Find the files of `dataset` under `path` (a file, a glob or a folder).

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
                f"the recipe of {dataset} reads this file",
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
            "ingest.path (with ingest.files) names the raw log: a file, a glob or a folder",
            "set ingest.path to your log",
        )
    # A file's name begins after the folders without a wildcard: logs/*/part.csv -> a/part.csv, b/part.csv
    parts = Path(path).parts
    base = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    return Source([RawFile(file, _name(file, base), _format(file)) for file in files])


def _find_folder(folder: Path) -> Source:
    log = _known(folder, "interactions.*")
    items = _known(folder, "items.*")
    if not log:
        listing = ", ".join(sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
        raise UserError(
            f"no interactions.* in {folder}",
            f"the log of a dataset folder must have that name; the folder holds {listing}",
            "rename your log, or set ingest.path to the file itself",
        )
    if len(items) > 1:
        _only([file.path for file in items], folder)
    return Source(log, items[0] if items else None, sorted(folder.glob(VECTORS)))


def _known(folder: Path, pattern: str) -> list[RawFile]:
    """Return the files of a known format that match; others, such as interactions.csv.dvc, are left out."""
    files = (file for file in sorted(folder.glob(pattern)) if _suffix(file) in FORMATS)
    return [RawFile(file, file.name, _format(file)) for file in files]


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise UserError(
            f"{' and '.join(f.name for f in files)} are both in {folder}",
            "the stage reads one of them and cannot tell which",
            "move the other file away",
        )
    return files[0]


def _suffix(file: Path) -> str:
    """Return the format's suffix: `log.2024.csv.gz` -> `.csv`."""
    return file.with_suffix("").suffix if file.suffix == ".gz" else file.suffix


def _format(file: Path) -> Format:
    if _suffix(file) not in FORMATS:
        raise UserError(
            f"the format of {file} is not known",
            "the end of the file's name tells its format",
            f"let the name end in one of {', '.join(FORMATS)}, plain or with .gz",
        )
    return FORMATS[_suffix(file)]
