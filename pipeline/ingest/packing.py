"""Open a raw file for reading bytes; a packed one (gzip, bz2, xz, zip, zstd) is unpacked on the way."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

from pipeline.errors import UserError

SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zip": "zip", ".zst": "zstd"}
MAGIC = {  # how a packed file begins
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an archive without files
}
BZIP2 = (b"BZh", b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")  # a digit stands after the first
BUFFER_BYTES = 1 << 20
BROKEN = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


def packing(path: Path) -> str:
    """Return how a file is packed, a value of `SUFFIXES`: by its content, else by its name; empty: not packed."""
    with path.open("rb") as stream:
        head = stream.read(10)
    for magic, kind in MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(BZIP2[0]) and head[4:] in BZIP2[1:]:
        return "bz2"
    return SUFFIXES.get(path.suffix.lower(), "")


def open_unpacked(path: Path, name: str, limit: int = 10**11) -> io.BufferedReader:
    """Open a file for reading its bytes, unpacked.

    Args:
        name: what messages call the file.
        limit: bytes that a packed file may have unpacked.

    Raises:
        UserError: now or at any later read: the file was cut short, is not packed as its name says, is a zip archive
            of several files, is encrypted, or unpacks to more than `limit`.
    """
    kind = packing(path)
    if not kind:
        return path.open("rb")
    return io.BufferedReader(_Unpacked(path, name, kind, limit), BUFFER_BYTES)


class _Unpacked(io.RawIOBase):
    """The bytes of a packed file; whatever the unpacker raises becomes a UserError."""

    def __init__(self, path: Path, name: str, kind: str, limit: int):
        self.name = name
        self.limit = limit
        self.size = 0  # bytes given so far
        self.kind = kind
        self.archive: zipfile.ZipFile | None = None
        try:
            self.stream = self._open(path)
        except BROKEN as error:
            raise self._explain(error) from None

    def _open(self, path: Path) -> IO[bytes]:
        if self.kind == "zip":
            self.archive = zipfile.ZipFile(path)
            return self._member(self.archive)
        if self.kind == "zstd":
            import pyarrow as pa  # here alone: `python -m pipeline check` finds the raw files, and loads nothing heavy

            return cast(IO[bytes], pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"))
        if self.kind == "gzip":
            return cast(IO[bytes], gzip.open(path, "rb"))
        return cast(IO[bytes], bz2.open(path, "rb") if self.kind == "bz2" else lzma.open(path, "rb"))

    def _member(self, archive: zipfile.ZipFile) -> IO[bytes]:
        files = [
            entry
            for entry in archive.infolist()
            if not entry.is_dir() and not entry.filename.startswith("__MACOSX/") and ".DS_Store" not in entry.filename
        ]
        names = [entry.filename for entry in files]
        if "[Content_Types].xml" in names:
            raise UserError(
                f"{self.name} is a spreadsheet or another office document",
                "ingest reads text files and Parquet",
                "save its table as CSV",
            )
        if len(files) != 1:
            listing = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") if names else "nothing"
            raise UserError(
                f"{self.name} is a zip archive of {len(files):,} files",
                f"the stage cannot tell which of them is the table; it holds {listing}",
                "unpack it (`unzip FILE`), and name the files by ingest.path and ingest.files",
            )
        if files[0].flag_bits & 1:
            raise UserError(
                f"{self.name} is an encrypted zip archive",
                "the stage asks for no password",
                "unpack it (`unzip FILE`) and name the unpacked file",
            )
        return archive.open(files[0])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self.stream.read(len(buffer))
        except BROKEN as error:
            raise self._explain(error) from None
        self.size += len(data)
        if self.size > self.limit:
            raise UserError(
                f"{self.name} unpacks to more than ingest.max_file_bytes, {self.limit:,} bytes",
                "a small file can be made that unpacks without end",
                "check where the file comes from, or raise ingest.max_file_bytes",
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            for stream in (getattr(self, "stream", None), self.archive):
                if stream is not None:
                    stream.close()
        super().close()

    def _explain(self, error: Exception) -> Exception:
        if isinstance(error, OSError) and error.errno:
            return error  # of the disk
        test = {"gzip": "gzip -t", "bz2": "bzip2 -t", "xz": "xz -t", "zip": "unzip -t", "zstd": "zstd -t"}[self.kind]
        return UserError(
            f"{self.name} is no complete {self.kind} file",
            "the file was cut short, or it is not compressed at all",
            f"download or copy the file again (`{test} FILE` must find no fault)",
        )
