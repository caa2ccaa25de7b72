"""Find a dataset's raw files under `ingest.path`: which files the stage reads, in which order, under which names."""

import glob
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from pipeline.errors import UserError
from pipeline.ingest.packing import SUFFIXES, open_unpacked
from pipeline.ingest.recipes import CSV, JSONL, PARQUET, RECIPES, TSV, DatasetRecipe, Format
from pipeline.printing import shown

TYPED = {
    **{".csv": CSV, ".tsv": TSV, ".jsonl": JSONL, ".ndjson": JSONL, ".json": JSONL, ".parquet": PARQUET},
    **{".inter": TSV, ".item": TSV},  # RecBole's atomic files
}
# Names that do not tell the format: it is found in the content (content.py). An empty one is a name without a suffix.
FORMATS = {**TYPED, **dict.fromkeys((".dat", ".txt", ".data", ".log", ""), CSV)}
VECTORS = "*_embeddings.npy"
VECTOR_SUFFIXES = (".npy", ".npz", ".safetensors")  # files of vectors, of which ingest itself reads `VECTORS` only
VECTOR_NAME = re.compile(r"(vector|embedding)s?\.parquet$", re.IGNORECASE)
PARTITION = re.compile(r"([^=/]+)=([^/]*)")  # a folder such as day=2024-01-01, as Hive and Spark name it
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
ATOMIC = re.compile(rb"[^:\s]+:(token|float)(_seq)?(\s|$)")  # RecBole's header line begins so
NAMED = 8  # unused files that are named at most


@dataclass(frozen=True)
class Limits:
    """A file may have so many bytes in a line or in a value of Parquet, and in what it unpacks to."""

    line_bytes: int = 4 << 20
    file_bytes: int = 10**11


@dataclass(frozen=True, kw_only=True)
class _Limited:
    limits: Limits = Limits()


@dataclass(frozen=True)
class RawFile(_Limited):
    """A file to read.

    name: its path inside the dataset's folder: outputs do not depend on where the folder is.
    skip: lines before the first row, or before the header line of a csv file, that are no rows.
    constants: columns with one value in all rows, from `partition`.
    """

    path: Path
    name: str
    format: Format
    skip: int = 0
    constants: Mapping[str, str] = field(default_factory=dict)

    @property
    def partition(self) -> dict[str, str]:
        """Return the columns that the names of the file's folders give: day=2024-01-01/part-0.csv has a column day."""
        matches = [PARTITION.fullmatch(part) for part in self.path.parts[:-1]]
        pairs = [(unquote(match[1]), unquote(match[2])) for match in matches if match]
        return {name: "" if value == NO_VALUE else value for name, value in pairs}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The raw files of a dataset.

    items: the item file, in several parts where a folder such as items.parquet/ holds them; empty: there is none.
    items_name: what messages call the item file.
    vectors_found: all files of item vectors (`VECTORS`); a file is used only if it is the only one.
    unused: files beside the log that are not read, each a line for the user.
    """

    log: Sequence[RawFile]
    items: Sequence[RawFile] = ()
    items_name: str = ""
    vectors_found: Sequence[Path] = ()
    unused: Sequence[str] = ()

    @property
    def vectors(self) -> Path | None:
        """Return the file of item vectors that is used, if any."""
        return self.vectors_found[0] if len(self.vectors_found) == 1 else None

    def sha256(self) -> dict[str, str]:
        """Return the hex digest of every file that is read, by name."""
        paths = {file.name: file.path for file in [*self.log, *self.items]}
        if self.vectors:
            paths[self.vectors.name] = self.vectors
        return {name: sha256(path) for name, path in paths.items()}


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_source(dataset: str, path: str, files: str = "") -> Source:
    """Find the files of `dataset` under `path` (a file, a glob or a folder).

    Args:
        files: which files of that folder are the log, a glob; empty: interactions.*

    Raises:
        UserError: a file is missing, its format is not known, or it is not clear which file is meant.
    """
    if dataset in RECIPES:
        return _find_recipe(dataset, RECIPES[dataset], Path(path, files))
    if Path(path).is_file() and not files:
        return _find_file(Path(path))
    if Path(path).is_dir() and not files:
        named = _logs(Path(path))
        return _find_file(Path(path)) if not named and _is_dataset(Path(path)) else _find_folder(Path(path), named)
    if Path(path).is_dir():
        return _find_glob(Path(path), files)
    parts = Path(path, files).parts
    wild = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return _find_glob(Path(*parts[:wild]), str(Path(*parts[wild:])))


def _find_recipe(dataset: str, recipe: DatasetRecipe, path: Path) -> Source:
    if recipe.in_categories:
        return _find_category(dataset, recipe, path)
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
    return Source(log=[found[0]], items=[found[1]], items_name=found[1].name)


def _find_category(dataset: str, recipe: DatasetRecipe, path: Path) -> Source:
    """Find the log of one category, and the metadata of the same category, which may be missing."""
    folder = path.parent if path.is_file() else path
    files = [file for pattern in ("*", "*/*") for file in sorted(folder.glob(pattern)) if file.is_file()]
    logs = [path] if path.is_file() else [file for file in files if not file.name.startswith("meta_")]
    for pattern, form in ((recipe.log, recipe.log_format), *recipe.further_logs):
        name = re.compile(re.escape(pattern).replace(r"\{category\}", "(.+)") + r"(?:\.gz)?")
        found = {file: match[1] for file in logs if (match := name.fullmatch(file.name))}
        if len(found) > 1:
            raise UserError(
                f"{_list([_name(file, folder) for file in found])} are all in {folder}",
                f"{dataset} is one category, and one file of its log",
                "set ingest.path to the file that you mean",
            )
        for log, category in found.items():
            meta = recipe.items.replace("{category}", category)
            items = [file for file in files if file.name in (meta, f"{meta}.gz")]
            return Source(
                log=[RawFile(log, _name(log, folder), form)],
                items=[RawFile(_only(items, folder), _name(items[0], folder), recipe.item_format)] if items else [],
                items_name=_name(items[0], folder) if items else "",
                unused=[] if items else [f"{meta} is not in {folder}: the items have no texts"],
            )
    names = " or ".join(pattern for pattern, _ in ((recipe.log, None), *recipe.further_logs))
    raise UserError(
        f"{names.replace('{category}', 'CATEGORY')} is not in {folder}",
        f"{dataset} reads one of these files, plain or with .gz, and {recipe.items.replace('{category}', 'CATEGORY')}",
        "set ingest.path to the folder that holds them, or run `python -m pipeline fetch CATEGORY`, which puts the "
        f"publisher's files into data/raw/{dataset}",
    )


def _find_file(log: Path) -> Source:
    """Take one file, or one dataset folder. DVC watches `ingest.path` alone, so the files beside it are not read."""
    beside = [path for path in sorted(log.parent.iterdir()) if path != log]
    items = [path.name for path in beside if _is_items(path)]
    vectors = [path.name for path in beside if path.suffix in VECTOR_SUFFIXES or VECTOR_NAME.search(path.name)]
    unused = []
    for names, what in ((items, "items"), (vectors, "item vectors")):
        if names:
            unused.append(
                f"{_list(names)} in {log.parent} was not read for {what}, because ingest.path names the log alone: "
                f"to read it, set ingest.path to {log.parent} and ingest.files to {log.name}"
            )
    return Source(log=_parts(log, log.parent), unused=unused)


def _find_glob(folder: Path, files: str) -> Source:
    """Take the files of the folder that match the glob as the log, and the item file and the vectors beside them."""
    # A file's name begins after the folders without a wildcard: logs/*/part.csv -> a/part.csv, b/part.csv
    fixed = list(itertools.takewhile(lambda part: not glob.has_magic(part), Path(files).parts[:-1]))
    base = folder.joinpath(*fixed)
    _refuse_outside(folder, files)
    found = [folder / name for name in sorted(glob.glob(files, root_dir=folder, recursive=True))]
    for path in found:
        _refuse_linked(folder, path)
    found = [path for path in found if path.is_dir() or _suffix(path) in FORMATS or not path.name.startswith("_")]
    if glob.has_magic(files):  # *.csv means the log, although it matches items.csv too
        found = [path for path in found if not (_is_items(path) and path.parent in (folder, base))]
    log = {file.path: file for path in found if path.is_file() or _is_dataset(path) for file in _parts(path, base)}
    if not log:
        raise UserError(
            f"no file at {folder / files}",
            "ingest.path (with ingest.files) names the raw log: a file, a glob or a folder",
            "set ingest.path to your log",
        )
    beside = next((parent for parent in (folder, base) if _items_of(parent)), folder)
    items, name = _find_items(beside)
    vectors = sorted(beside.glob(VECTORS))
    unused = _unused(beside, [*found, *_items_of(beside)], vectors)
    if vectors and not items:
        unused.append(f"{_list([v.name for v in vectors])} was not read, because no items.* is beside it in {beside}")
        vectors = []
    return Source(log=list(log.values()), items=items, items_name=name, vectors_found=vectors, unused=unused)


def _refuse_outside(folder: Path, files: str) -> None:
    if Path(files).is_absolute() or ".." in Path(files).parts:
        raise UserError(
            f"ingest.files is {files}, which may lead out of {folder}",
            "DVC watches ingest.path alone: changes of files elsewhere would go unnoticed",
            "set ingest.path to a folder that holds the files, and ingest.files to a pattern inside it",
        )


def _refuse_linked(folder: Path, path: Path) -> None:
    """Refuse a file below a linked folder: DVC follows links to files and no links to folders."""
    linked = next((p for p in [path, *path.parents] if p.is_symlink() and p.is_dir() and folder in p.parents), None)
    if linked and not linked.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{linked} is a link to the folder {linked.resolve()}, outside of ingest.path",
            "DVC does not look into linked folders: changes of the files there would go unnoticed",
            "move or copy the folder to where the link is, or set ingest.path to the folder itself",
        )


def _logs(folder: Path) -> list[Path]:
    """Return the files called interactions.*, or else RecBole's *.inter."""
    named = [path for path in sorted(folder.glob("interactions*")) if _is_called(path, "interactions")]
    if named:
        return named
    atomic = [path for path in sorted(folder.glob("*.inter*")) if path.is_file() and _suffix(path) == ".inter"]
    whole = [
        path for path in atomic if any(other.name.startswith(f"{path.name[:-6]}.") for other in atomic if other != path)
    ]
    if whole:
        raise UserError(
            f"{whole[0].name} and parts of it are both in {folder}",
            f"it is not clear whether the log is the one file or its parts: {_list([p.name for p in atomic])}",
            "name the log by ingest.files",
        )
    return atomic


def _find_folder(folder: Path, log: Sequence[Path]) -> Source:
    if not log:
        listing = ", ".join(shown(name) for name in sorted(p.name for p in folder.iterdir())[:20]) or "nothing"
        raise UserError(
            f"no interactions.* in {folder}",
            f"the log of a dataset folder must have that name; the folder holds {listing}",
            "rename your log, name it by ingest.files, or set ingest.path to the file itself",
        )
    items, name = _find_items(folder)
    vectors = sorted(folder.glob(VECTORS))
    return Source(
        log=[file for path in log for file in _parts(path, folder)],
        items=items,
        items_name=name,
        vectors_found=vectors,
        unused=_unused(folder, [*log, *_items_of(folder)], vectors),
    )


def _items_of(folder: Path) -> list[Path]:
    """Return the files called items.*, or else RecBole's *.item."""
    named = [path for path in sorted(folder.glob("items*")) if _is_called(path, "items")]
    return named or [path for path in sorted(folder.glob("*.item*")) if _is_atomic_items(path)]


def _find_items(folder: Path) -> tuple[list[RawFile], str]:
    """Return the parts of the folder's item file and its name; nothing if there is none."""
    found = _items_of(folder)
    if not found:
        return [], ""
    return _parts(_only(found, folder), folder), found[0].name


def _unused(folder: Path, used: Sequence[Path], vectors: Sequence[Path]) -> list[str]:
    """Name the files of the folder that could belong to the dataset and are not read."""
    rest = [
        path.name
        for path in sorted(folder.iterdir())
        if path not in used
        and path not in vectors
        and not path.name.startswith((".", "_"))
        and (_is_dataset(path) or (path.is_file() and (_suffix(path) in TYPED or path.suffix in VECTOR_SUFFIXES)))
        and not any(path in other.parents for other in used)
    ]
    if not rest:
        return []
    return [
        f"not read in {folder}: {_list(rest)} (the log is interactions.* or ingest.files, the item file items.*, "
        f"vectors {VECTORS}; other vectors come in by embed.path)"
    ]


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(map(shown, names[:NAMED])) + more


def _is_items(path: Path) -> bool:
    return _is_called(path, "items") or _is_atomic_items(path)


def _is_atomic_items(path: Path) -> bool:
    """Tell whether a file is an item file of RecBole; u.item of MovieLens, which has no header line, is none."""
    if not path.is_file() or _suffix(path) != ".item":
        return False
    with open_unpacked(path, path.name) as stream:
        return bool(ATOMIC.match(stream.readline(4096).removeprefix(b"\xef\xbb\xbf")))


def _is_called(path: Path, name: str) -> bool:
    """Tell whether a file or dataset folder is NAME.SUFFIX of a known format, or a dataset folder NAME."""
    if path.name != name and not path.name.startswith(f"{name}."):
        return False  # interactions.csv.dvc has no known format
    return _is_dataset(path) or (path.is_file() and _suffix(path) in FORMATS)


def _is_dataset(path: Path) -> bool:
    """Tell whether a folder is one file in parts, as Spark and Dask write it: log.parquet/part-00000.snappy.parquet."""
    if not path.is_dir():
        return False
    named = _suffix(path) in TYPED or any(path.glob("part-*")) or any(path.glob("[!._]*=*/"))
    return named and bool(_part_files(path))


def _part_files(folder: Path) -> list[Path]:
    """Return the files of a dataset folder and of the folders in it; hidden files, _SUCCESS and the like are none."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    ]
    typed = [path for path in files if _suffix(path) in TYPED or (not path.suffix and _suffix(folder) in TYPED)]
    # README.txt in log.csv/ is no part; of a folder with nothing but part-0.txt or part-00000 all are.
    return typed or [path for path in files if _suffix(path) in FORMATS]


def _parts(path: Path, base: Path) -> list[RawFile]:
    """Return the file, or all parts of a dataset folder; a part without a suffix has the folder's format."""
    if not path.is_dir():
        return [RawFile(path, _name(path, base), _format(path))]
    return [
        RawFile(
            part, _name(part, base), _format(part if _suffix(part) in TYPED or _suffix(path) not in TYPED else path)
        )
        for part in _part_files(path)
    ]


def _name(file: Path, folder: Path) -> str:
    return shown(file.relative_to(folder).as_posix())


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise UserError(
            f"{' and '.join(shown(f.name) for f in files)} are both in {folder}",
            "the stage reads one of them and cannot tell which",
            "move the other file away",
        )
    return files[0]


def _suffix(file: Path) -> str:
    """Return the format's suffix, in lower case: `log.2024.csv.gz` -> `.csv`."""
    return (file.with_suffix("") if file.suffix.lower() in SUFFIXES else file).suffix.lower()


def _format(file: Path) -> Format:
    if _suffix(file) not in FORMATS:
        raise UserError(
            f"the format of {file} is not known",
            "the end of the file's name tells its format",
            f"let the name end in one of {', '.join(filter(None, FORMATS))}, plain or packed ({', '.join(SUFFIXES)})",
        )
    return FORMATS[_suffix(file)]
