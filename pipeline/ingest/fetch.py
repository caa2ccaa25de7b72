"""Download a publisher's files by URL for `python -m pipeline fetch`, check them and unpack what a recipe reads."""

import errno
import lzma
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from pipeline.errors import UserError
from pipeline.ingest.download import download, file_name, is_plain_name
from pipeline.ingest.recipes import RECIPES, DatasetRecipe
from pipeline.ingest.sources import sha256
from pipeline.printing import say, shown

CATEGORY = re.compile(r"\w+")  # the name of a category, no address
MAX_BYTES = 100_000_000_000  # of a file, where `fetch` is called without the settings
BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error)
OF_ARCHIVES = (None, errno.EINVAL)  # numbers of an OSError that bz2, or a wrong offset in an archive, raises


def fetch(
    dataset: str, folder: Path | None = None, urls: Sequence[str] | None = None, max_bytes: int = MAX_BYTES
) -> list[Path]:
    """Download a dataset's files, unless they are there already, and print their sha256.

    A file whose sha256 the recipe knows must have it, wherever it comes from.

    Args:
        dataset: a recipe's name, or `custom` with `urls`.
        folder: where the files go; data/raw/DATASET if not given.
        urls: addresses to use instead of the publisher's; of a dataset in categories also the name of a category, such
            as Toys_and_Games.
        max_bytes: size of a download, and of a file inside an archive, above which it is refused.

    Returns:
        The files, ready for `ingest.path: FOLDER`; of a recipe's zip archive only the files that the recipe reads.

    Raises:
        UserError: nothing to fetch, no connection (the message says which file to put where), a file that is too large
            or not the publisher's, or a full disk.
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
    names = [file_name(url) for url in urls]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"two of the addresses name a file {twice[0]}",
            "the second would overwrite the first",
            "fetch one of them, move it, then fetch the other",
        )
    files = _present(recipe, folder)
    if not files:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for url in urls:
                file = download(url, folder, urls, max_bytes)
                _check(dataset, recipe, file)
                files += _unpack(recipe, file, max_bytes)
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


def _present(recipe: DatasetRecipe | None, folder: Path) -> list[Path]:
    """Return the recipe's files if all of them are in `folder`, else an empty list."""
    patterns = (recipe.log, recipe.items) if recipe and not recipe.in_categories else ()
    found = [[file for file in sorted(folder.glob(pattern)) if ".partial" not in file.name][:1] for pattern in patterns]
    return [file for files in found for file in files] if all(found) else []


def _check(dataset: str, recipe: DatasetRecipe | None, file: Path) -> None:
    """Compare a file with the sha256 that the recipe has of it, if any, and remove another file."""
    pinned = recipe.sha256.get(file.name) if recipe else None
    if pinned is None or (found := sha256(file)) == pinned:
        return
    file.unlink()
    raise UserError(
        f"{file.name} is not the file of {dataset}: its sha256 is {found}, the publisher's {pinned}",
        "the download was changed or is of something else; the file was removed",
        "fetch again, or from another address; a file that you trust can be unpacked by hand into the folder",
    )


def _unpack(recipe: DatasetRecipe | None, file: Path, max_bytes: int) -> list[Path]:
    """Unpack the files that a recipe reads beside its archive, without folders, and remove the archive.

    Any other file is returned as it is.
    """
    if file.suffix != ".zip" or recipe is None:
        return [file]
    partials: list[Path] = []
    try:
        with zipfile.ZipFile(file) as archive:
            for pattern in (recipe.log, recipe.items):
                member = next((m for m in archive.infolist() if fnmatch(PurePosixPath(m.filename).name, pattern)), None)
                if member is None:
                    raise _no_archive(file, recipe.log, recipe.items, "these files are not in it")
                partials.append(file.with_name(f"{PurePosixPath(member.filename).name}.partial"))
                _copy(archive, member, file, partials[-1], max_bytes)
        files = [partial.replace(partial.with_name(partial.stem)) for partial in partials]
    except UserError:
        file.unlink()
        raise
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno not in OF_ARCHIVES:
            raise
        file.unlink()
        raise _no_archive(file, recipe.log, recipe.items, str(error)) from None
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    file.unlink()
    return files


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path, copy: Path, max_bytes: int) -> None:
    """Copy a member of the archive `file` to the path `copy`.

    Raises:
        UserError: the member is encrypted or larger than `max_bytes`, or its name is no name for a file.
    """
    name = PurePosixPath(member.filename).name
    if member.flag_bits & 1 or not is_plain_name(name):
        raise _no_archive(file, name, "", "it is encrypted" if member.flag_bits & 1 else "the name is none of a file")
    if member.file_size > max_bytes:
        raise UserError(
            f"{name} in {file.name} has {member.file_size:,} bytes, more than ingest.max_file_bytes, {max_bytes:,}",
            "such a file would fill the disk; the archive was removed",
            "raise ingest.max_file_bytes if the file is meant to be that large",
        )
    with archive.open(member) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target)  # reads member.file_size bytes at most


def _no_archive(file: Path, log: str, items: str, reason: str) -> UserError:
    names = f"{log} and {items}" if items else log
    return UserError(
        f"{file.name} is no archive with {names}" + (f": {shown(reason)}" if reason else ""),
        "the download was broken or is of something else; the file was removed",
        f"run `python -m pipeline fetch` again, or unpack the publisher's archive by hand into {file.parent}",
    )
