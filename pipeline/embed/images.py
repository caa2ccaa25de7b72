"""Item images from the dataset folder. They are untrusted: each is checked before any of them reaches a model.

An image that is missing, outside the folder, too large or broken is a reject with a reason; its item goes on without.
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

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # of an animation the first frame
MAX_BYTES = 64 * 2**20
MAX_ASPECT = 200  # the model's own limit of one side over the other
THREADS = min(16, os.cpu_count() or 1)  # decoding leaves Python's lock


class BadImageError(Exception):
    """Why an image cannot be used, in a few words."""


@dataclass(frozen=True)
class Picture:
    """An image that was decoded once without complaint. digest: sha256 of the file."""

    path: Path
    width: int
    height: int
    digest: str

    def load(self) -> Image.Image:
        """RGB, upright.

        Raises:
            BadImageError, OSError: the file is another one by now, or gone.
        """
        data = _read(self.path)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise BadImageError("other bytes than before")
        return _decode(data)


@dataclass
class Survey:
    """The images of all items, and what was left aside."""

    pictures: list[list[Picture]] = field(default_factory=list)  # of each item
    rejects: list[tuple[int, str, str]] = field(default_factory=list)  # (item, image as the data name it, reason)
    named: int = 0  # images that the items name
    beyond: int = 0  # of these, after an item's first `max_images`


def survey(cells: Sequence[str | None], folder: Path, max_images: int, max_pixels: int) -> Survey:
    """Check all images once.

    Args:
        cells: column `image` of each item: one path, several, or none (`image_names`), relative to `folder`.
        max_images: of one item; further ones are not looked at.
        max_pixels: width times height above which an image is refused before it is decoded.
    """
    found, names = Survey(), [image_names(cell) for cell in cells]
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
        BadImageError: it cannot be used.
    """
    try:
        path = (folder / name).resolve()  # also through links
        if not path.is_relative_to(folder.resolve()):
            raise BadImageError("outside the dataset folder")
        if not path.is_file():
            raise BadImageError("no such file")
        data = _read(path)
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a NUL in the name; links in a circle
        # Not the whole message: it may hold the path of this machine.
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
    """RGB, turned upright as the camera said; the size is checked before a pixel is decoded."""
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
    except Exception as error:  # every decoder has its own for a damaged file
        raise BadImageError(f"cannot be decoded: {str(error) or type(error).__name__}") from None
