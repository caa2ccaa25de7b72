"""Find, check and load item images from the dataset folder.

Images are untrusted, so each image is checked before any image reaches a model. An image that is missing, outside the
folder, too large or broken becomes a reject with a reason, and its item is embedded without it.
"""

import hashlib
import io
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.artifacts import image_names
from pipeline.progress import Progress

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # the first frame of an animation is taken
MAX_BYTES = 64 * 2**20
MAX_ASPECT = 200  # the model's limit on one side over the other
THREADS = min(16, os.cpu_count() or 1)  # threads help, because decoding releases Python's lock


class BadImageError(Exception):
    """An image cannot be used; the message says why in a few words."""


@dataclass(frozen=True)
class Picture:
    """An image that was decoded once without an error. width, height: pixels, upright. digest: sha256 of the file."""

    path: Path
    width: int
    height: int
    digest: str

    def load(self) -> Image.Image:
        """Decode the image as RGB, upright.

        Raises:
            BadImageError, OSError: the file has changed since it was checked, or is gone.
        """
        data = _read(self.path)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise BadImageError("other bytes than before")
        return _decode(data)


@dataclass
class Survey:
    """The usable images of all items, the rejected ones, and counts."""

    pictures: list[list[Picture]] = field(default_factory=list)  # usable images of each item
    rejects: list[tuple[int, str, str]] = field(default_factory=list)  # (item, image as the data name it, reason)
    named: int = 0  # images that the items name
    beyond: int = 0  # named images that come after an item's first `max_images`


def survey(cells: Sequence[str | None], folder: Path, max_images: int, max_pixels: int) -> Survey:
    """Check all images once.

    Args:
        cells: column `image` of each item: one path, several, or none (`image_names`), relative to `folder`.
        max_images: images of one item that are looked at; further ones are counted only.
        max_pixels: width times height above which an image is refused before it is decoded.
    """
    found = Survey()
    names = [image_names(cell) for cell in cells]
    found.named = sum(map(len, names))
    found.beyond = sum(max(0, len(of_item) - max_images) for of_item in names)
    wanted = [(item, name) for item, of_item in enumerate(names) for name in of_item[:max_images]]
    found.pictures = [[] for _ in cells]
    lock = threading.Lock()
    with Progress("embed: images", len(wanted), "images") as progress, ThreadPoolExecutor(THREADS) as pool:

        def check(name: str) -> Picture | BadImageError:
            try:
                return inspect(folder, name, max_pixels)
            except BadImageError as reason:
                return reason
            finally:
                with lock:
                    progress.update(1)

        for (item, name), result in zip(wanted, pool.map(check, [name for _, name in wanted]), strict=True):
            if isinstance(result, BadImageError):
                found.rejects.append((item, name, str(result)))
            else:
                found.pictures[item].append(result)
    return found


def inspect(folder: Path, name: str, max_pixels: int) -> Picture:
    """Find and decode one image.

    Raises:
        BadImageError: the image cannot be used.
    """
    try:
        path = (folder / name).resolve()  # follows links, so that none leads outside
        if not path.is_relative_to(folder.resolve()):
            raise BadImageError("outside the dataset folder")
        if not path.is_file():
            raise BadImageError("no such file")
        data = _read(path)
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a NUL in the name; links in a circle
        # The whole message may hold a path of this machine, so only the system's words for the error are used.
        raise BadImageError(f"cannot be read: {getattr(error, 'strerror', None) or 'no usable path'}") from None
    upright = _decode(data, max_pixels)
    return Picture(path, upright.width, upright.height, hashlib.sha256(data).hexdigest())


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise BadImageError(f"larger than {MAX_BYTES // 2**20} MiB")
    return data


def _decode(data: bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode an image as RGB, upright by its EXIF orientation; the size is checked before a pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if max_pixels is not None and width * height > max_pixels:
            raise BadImageError(f"{width} x {height} is more than {max_pixels:,} pixels")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise BadImageError(f"{width} x {height} is longer than {MAX_ASPECT} times its width")
        return ImageOps.exif_transpose(image).convert("RGB")
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(f"cannot be decoded: none of {', '.join(FORMATS)}") from None
    except Exception as error:  # each decoder raises another exception for a damaged file
        raise BadImageError(f"cannot be decoded: {str(error) or type(error).__name__}") from None
