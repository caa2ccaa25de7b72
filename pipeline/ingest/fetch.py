"""Download a publisher's files by URL, for `python -m pipeline fetch`, and resume where a connection was dropped.

A download grows in NAME.partial. NAME.partial.tag holds the server's name of that version of the file, so that both
parts of a resumed download are of one version.
"""

import http.client
import re
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
from pipeline.ingest.recipes import RECIPES, DatasetRecipe
from pipeline.ingest.sources import sha256
from pipeline.printing import say
from pipeline.progress import Progress

CATEGORY = re.compile(r"\w+")  # the name of a category, no address
BLOCK_BYTES = 1 << 18
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # attempts in a row that bring no new byte, after which a download fails
PAUSE = 1.0  # seconds before the second attempt; it doubles with each further one
DROPPED = (ConnectionError, TimeoutError, http.client.HTTPException, URLError, ssl.SSLError)


def fetch(dataset: str, folder: Path | None = None, urls: Sequence[str] | None = None) -> list[Path]:
    """Download a dataset's files, unless they are there already, and print their sha256.

    Args:
        dataset: a recipe's name, or `custom` with `urls`.
        folder: where the files go; data/raw/DATASET if not given.
        urls: addresses to use instead of the publisher's; of a dataset in categories also the name of a category, such
            as Toys_and_Games.

    Returns:
        The files, ready for `ingest.path: FOLDER`; of a recipe's zip archive only the files that the recipe reads.

    Raises:
        UserError: nothing to fetch, no connection (the message says which file to put where), or a full disk.
    """
    folder = folder or Path("data/raw") / dataset
    recipe = RECIPES.get(dataset)
    urls = list(urls or (recipe.urls if recipe and not recipe.in_categories else ()))
    if recipe and recipe.in_categories:
        if not urls:
            raise UserError(
                f"{dataset} is published in categories, and no category is named",
                "the publisher's files are "
                + " and ".join(url.replace("{category}", "CATEGORY") for url in recipe.urls),
                "name one as its files do: python -m pipeline fetch Toys_and_Games",
            )
        if len(urls) == 1 and CATEGORY.fullmatch(urls[0]):
            recipe = recipe.of(urls[0])
            urls = list(recipe.urls)
    if not urls:
        raise UserError(
            f"there is nothing to fetch for the dataset {dataset}",
            "ingest simulates the demo, and a log of your own is on this machine already",
            "set dataset to a public data set, or ingest.path to your log",
        )
    files = _present(recipe, folder)
    if not files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for url in urls:
                files += _unpack(recipe, download(url, folder, urls))
        except OSError as error:
            raise UserError(
                f"could not write into {folder}: {error.strerror or error}",
                "the part that was downloaded so far is still there",
                "free some disk space, then run `python -m pipeline fetch` again",
            ) from error
    for file in files:
        say(f"{sha256(file)}  {file}")
    say(f"ingest.path: {folder} reads them")
    return files


def download(url: str, folder: Path, urls: Sequence[str]) -> Path:
    """Download `url` into `folder`; continue a partial download, and survive dropped connections.

    Args:
        urls: all addresses of the dataset, which the message lists where there is no connection.

    Returns:
        The file, which has the last part of the address as its name.

    Raises:
        UserError: the address is not http or https, or the server cannot be reached or refuses.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(
            f"{url} is no http or https address",
            "fetch downloads over http and https only",
            f"download the file by other means into {folder}",
        )
    target = folder / _name(url)
    partial = target.with_name(target.name + ".partial")
    failures = 0  # attempts in a row that brought no new byte
    while not target.exists():
        # Each attempt goes on after the bytes of those before. With ATTEMPTS 5, a connection that drops again and again
        # but brings bytes each time is tried without end; one that brings none is given up after 5 attempts.
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
    """Request the bytes that `partial` still lacks, and append them.

    Raises:
        ConnectionError: the connection ended before the file did; `partial` holds the bytes that came.
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
    """Write down the server's name of this version; without a name, or with a weak ETag, no download is resumed."""
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
        "the next fetch goes on after the part that came" if _size(partial) else "this machine may be offline",
        "\n".join(
            [
                "run `python -m pipeline fetch` again, or download the files elsewhere and put them here:",
                *(f"  {partial.parent / _name(each)}  from {each}" for each in urls),
            ]
        ),
    )


def _present(recipe: DatasetRecipe | None, folder: Path) -> list[Path]:
    """Return the recipe's files if all of them are in `folder`, else an empty list."""
    patterns = (recipe.log, recipe.items) if recipe and not recipe.in_categories else ()
    found = [[file for file in sorted(folder.glob(pattern)) if ".partial" not in file.name][:1] for pattern in patterns]
    return [file for files in found for file in files] if all(found) else []


def _unpack(recipe: DatasetRecipe | None, file: Path) -> list[Path]:
    """Unpack the files that a recipe reads beside its archive, without folders, and remove the archive.

    Any other file is returned as it is.
    """
    if file.suffix != ".zip" or recipe is None:
        return [file]
    files = []
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
            "the download was broken or is of something else; the file was removed",
            f"run `python -m pipeline fetch` again, or unpack the publisher's archive by hand into {file.parent}",
        ) from None
    file.unlink()
    return files
