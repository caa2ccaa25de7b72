"""`python -m pipeline fetch`: the publisher's files by URL, resumed where a connection was dropped.

A download grows in NAME.partial; NAME.partial.tag holds what the server called that version of the file, so that the
two halves of a resumed download are never of different versions.
"""

import http.client
import shutil
import ssl
import time
import zipfile
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from pipeline.errors import UserError
from pipeline.ingest.recipes import RECIPES
from pipeline.ingest.sources import sha256
from pipeline.progress import Progress

BLOCK_BYTES = 1 << 18
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring no new byte
PAUSE = 1.0  # seconds after the first failed attempt; doubles
DROPPED = (ConnectionError, TimeoutError, http.client.HTTPException, URLError, ssl.SSLError)


def fetch(dataset: str, folder: Path | None = None, urls: Sequence[str] | None = None) -> list[Path]:
    """Download a dataset's files, unless they are there already, and print their sha256.

    Args:
        dataset: a recipe's name, or `custom` with `urls`.
        folder: where to put them; data/raw/DATASET if not given.
        urls: instead of the publisher's.

    Returns:
        The files, ready for `ingest.path: FOLDER`; of a recipe's zip archive those that it reads.

    Raises:
        UserError: nothing to fetch, no connection (says which file to put where), or a full disk.
    """
    folder = folder or Path("data/raw") / dataset
    urls = list(urls or (RECIPES[dataset].urls if dataset in RECIPES else ()))
    if not urls:
        raise UserError(
            f"there is nothing to fetch for the dataset {dataset}",
            "the demo is simulated by ingest, and a log of your own is where you have it",
            "set dataset to a public one, or ingest.path to your log",
        )
    files = _present(dataset, folder)
    if not files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for url in urls:
                files += _unpack(dataset, download(url, folder, urls))
        except OSError as error:
            raise UserError(
                f"could not write into {folder}: {error.strerror or error}",
                "what was downloaded so far is kept",
                "free some space, then fetch again",
            ) from error
    for file in files:
        print(f"{sha256(file)}  {file}")
    print(f"ingest.path: {folder} reads them")
    return files


def download(url: str, folder: Path, urls: Sequence[str]) -> Path:
    """The file at `url`, in `folder` under its own name; continues a partial one and survives dropped connections.

    `urls` are all files of the dataset, for the message to somebody offline.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is no http or https address", fix=f"download it by other means into {folder}")
    target = folder / _name(url)
    partial = target.with_name(target.name + ".partial")
    failures = 0
    while not target.exists():
        before = _size(partial)
        try:
            _continue(url, partial)
            partial.replace(target)
            _tag(partial).unlink(missing_ok=True)
        except HTTPError as error:
            if error.code != 416:  # 416: the partial file is longer than the server's; begin again
                raise _unreachable(url, partial, urls, f"the server answered {error.code} {error.reason}") from None
            partial.unlink()
        except DROPPED as error:
            failures = 0 if _size(partial) > before else failures + 1
            if failures >= ATTEMPTS or not _size(partial):
                raise _unreachable(url, partial, urls, str(getattr(error, "reason", error))) from None
            time.sleep(PAUSE * 2**failures)
    return target


def _continue(url: str, partial: Path) -> None:
    """One request for what is still missing.

    Raises:
        ConnectionError: the connection ended before the file did; what came is kept.
    """
    have = _size(partial)
    request = Request(url, headers={"User-Agent": "sidpipe"})
    if have and _tag(partial).exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", _tag(partial).read_text())
    with urlopen(request, timeout=TIMEOUT) as response:
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else 0
        if not resumed:
            _remember(partial, response.headers)
        with (
            partial.open("ab" if resumed else "wb") as file,
            Progress(f"fetch {partial.stem}", total, "bytes", start=have) as progress,
        ):
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                progress.update(len(block))
    if total and _size(partial) < total:
        raise ConnectionError(f"the connection was dropped after {_size(partial):,} of {total:,} bytes")


def _remember(partial: Path, headers: http.client.HTTPMessage) -> None:
    """Keep the version of the file; a server that names none cannot be resumed, nor one with a weak tag."""
    etag = headers.get("ETag", "")
    version = headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    if version:
        _tag(partial).write_text(version)
    else:
        _tag(partial).unlink(missing_ok=True)


def _tag(partial: Path) -> Path:
    return partial.with_name(partial.name + ".tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _name(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _unreachable(url: str, partial: Path, urls: Sequence[str], reason: str) -> UserError:
    return UserError(
        f"could not download {url}: {reason}",
        "what came so far is kept and continued next time" if _size(partial) else "this machine may be offline",
        "\n".join(
            [
                "run `python -m pipeline fetch` again, or download elsewhere and put here:",
                *(f"  {partial.parent / _name(each)}  from {each}" for each in urls),
            ]
        ),
    )


def _present(dataset: str, folder: Path) -> list[Path]:
    """The recipe's files, if all of them are in `folder`."""
    recipe = RECIPES.get(dataset)
    found = [sorted(folder.glob(pattern))[:1] for pattern in (recipe.log, recipe.items)] if recipe else []
    return [file for files in found for file in files] if all(found) else []


def _unpack(dataset: str, file: Path) -> list[Path]:
    """Of a recipe's archive the files that it reads, beside it, without their folders; the archive is then removed."""
    if file.suffix != ".zip" or dataset not in RECIPES:
        return [file]
    recipe, files = RECIPES[dataset], []
    try:
        with zipfile.ZipFile(file) as archive:
            for pattern in (recipe.log, recipe.items):
                member = next(m for m in archive.namelist() if fnmatch(PurePosixPath(m).name, pattern))
                target = file.with_name(PurePosixPath(member).name)
                with archive.open(member) as source, (file.parent / f"{target.name}.partial").open("wb") as copy:
                    shutil.copyfileobj(source, copy)
                files.append(Path(copy.name).replace(target))
    except (zipfile.BadZipFile, StopIteration):
        file.unlink()
        raise UserError(
            f"{file.name} is no archive with {recipe.log} and {recipe.items}",
            "it was removed",
            "fetch it again, or unpack the publisher's archive by hand into " + str(file.parent),
        ) from None
    file.unlink()
    return files
