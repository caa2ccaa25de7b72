"""Write files whole, and tell which files of a folder belong together.

A stage writes manifest.json after all other files of its folder; it lists their checksums.

A stage that is stopped between two files leaves a folder of two runs, and a damaged disk or copy changes a byte. A
reader compares each file with its checksum in the manifest before it uses the file. A folder without a manifest is one
of an earlier version; its files are read as they are. Several stages write into reports/: there the last JSON file of
each stage lists the checksums (`sealed`).
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.errors import UserError

MANIFEST = "manifest.json"
CHECKSUM = "checksum"  # key of a JSON file that holds the checksum of its other keys
FILES = "files"  # key of a JSON file that lists the checksums of files beside it
PARTIAL = ".partial"  # ends the name of a file that is being written


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file of these bytes, whole or not at all.

    Raises:
        UserError: the file cannot be written; an earlier version is unchanged.
    """
    with writing(path) as file:
        file.write(content)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`, and rename it at the end of the `with` block.

    So a kill, a full disk or an error inside the block never leaves half a file.

    Raises:
        UserError: the file cannot be written; an earlier version is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(path.name)}.*{PARTIAL}"):  # by a process that was killed
        if not _runs(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"could not write {path}: {error.strerror}",
            "an earlier version of the file, if there was one, is unchanged",
            "free some space or correct the permissions, then run the same command again",
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _runs(process: str) -> bool:
    """Tell whether a process with this id runs on this machine."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        pass
    return True


def seal(folder: Path, stage: str) -> None:
    """Write the manifest of all files directly in `folder`, which `python -m pipeline STAGE` has written."""
    files = {path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.is_file() and belongs(path)}
    write_bytes(folder / MANIFEST, (json.dumps({"stage": stage, "files": files}, indent=2) + "\n").encode())


def fingerprint(*parts: Any) -> str:
    """Return the hex sha256 of JSON-like values and of the bytes of files and folders (`Path`s), in the given order.

    A manifest is no content.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            files = sorted(p for p in part.rglob("*") if p.is_file() and belongs(p)) if part.is_dir() else [part]
            for file in files:
                digest.update(str(file.relative_to(part.parent)).encode())
                digest.update(bytes.fromhex(file_digest(file)))
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def belongs(path: Path) -> bool:
    """Tell whether a file is content: not the manifest itself, and nothing unfinished."""
    return path.name != MANIFEST and path.suffix != PARTIAL


def verify(path: Path) -> None:
    """Compare a file with the manifest beside it, if there is one.

    Raises:
        UserError: the file is not the one that the manifest lists, or the manifest cannot be read.
    """
    manifest = path.parent / MANIFEST
    try:
        text = manifest.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise _refusal(f"{manifest} cannot be read: {error}", "") from None
    stage, files = _parse(manifest, text)
    if files.get(path.name) != file_digest(path):
        raise _refusal(f"{path} is not the file that {manifest} lists", stage)


def verify_present(path: Path) -> None:
    """Compare a file that an earlier stage writes with the manifest beside it.

    Raises:
        UserError: the file is missing, or not the one that the manifest lists.
    """
    if not path.exists():
        raise UserError(
            f"{path} is not here",
            "an earlier stage writes this file",
            "run `dvc repro`, or `dvc checkout` if the file was made before",
        )
    verify(path)


def sealed(content: Mapping[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return JSON values with the checksums of files of a folder that other stages write to, and with their own.

    Args:
        folder: where the JSON file will lie, beside or above the files.
        names: of the files, relative to `folder`; they are written already.
    """
    content = {**content, FILES: {name: file_digest(folder / name) for name in names}}
    return {**content, CHECKSUM: _checksum(content)}


def unsealed(path: Path, content: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """Return the values that `sealed` was given; values without checksums, of an earlier version, as they are.

    A listed file that is not there is no error: whoever needs it says so.

    Args:
        path: the JSON file.
        stage: the command that writes it.

    Raises:
        UserError: the values, or a file, are not those of the checksums.
    """
    listed = seal_of(path, content)
    for name, digest in listed.items():
        file = path.parent / name
        if file.is_file() and file_digest(file) != digest:
            raise not_listed(str(file), str(path), stage)
    return {key: value for key, value in content.items() if key not in (CHECKSUM, FILES)}


def seal_of(path: Path | str, content: Mapping[str, Any]) -> dict[str, str]:
    """Return name -> checksum of the files that a JSON file lists; none in one of an earlier version.

    Args:
        path: the JSON file, for the message.

    Raises:
        UserError: the values are not those of their own checksum.
    """
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    if CHECKSUM in content and content[CHECKSUM] != _checksum(values):
        raise UserError(
            f"{path} does not have the content that its checksum names",
            "the file was damaged or edited",
            f"run `dvc checkout`, or `dvc repro` to make it anew; after an edit on purpose, delete its {CHECKSUM}",
        )
    files = content.get(FILES, {})
    return {str(name): str(digest) for name, digest in files.items()} if isinstance(files, dict) else {}


def not_listed(file: str, path: str, stage: str) -> UserError:
    """Return the error about a file that is not the one that the JSON file `path` of a stage lists."""
    return UserError(
        f"{file} is not the file that {path} lists",
        "a stage ran without the one after it, was stopped half-way, files of two runs were mixed, or one was damaged",
        f"run `python -m pipeline {stage}`, `dvc repro`, or `git checkout reports` and `dvc checkout`",
    )


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the hex sha256 of a file. A file that did not change is read once in a process."""
    state = path.stat()
    return _digest(str(path.resolve()), state.st_ino, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=10_000)
def _digest(path: str, *state: int) -> str:  # noqa: ARG001 - another state is another file
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(manifest: Path, text: str) -> tuple[str, dict[str, Any]]:
    """Return the stage and the checksums of a manifest's text."""
    try:
        content = json.loads(text)
        stage, files = str(content["stage"]), content["files"]
        if not isinstance(files, dict):
            raise TypeError("files must be a mapping")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _refusal(f"{manifest} is no list of files and their checksums", "") from None
    return stage, files


def _refusal(what: str, stage: str) -> UserError:
    anew = f"`python -m pipeline {stage}`" if stage.isalpha() else "`dvc repro`"
    return UserError(
        what,
        "a stage was stopped between two files, files of two runs were mixed, or a file was damaged or edited",
        f"run `dvc checkout`, or {anew} to make the folder anew; after an edit on purpose, delete {MANIFEST}",
    )
