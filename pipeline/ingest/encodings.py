"""Find the encoding of a text file, and read the file as UTF-8 whatever its encoding is.

UTF-8 is expected. UTF-16 and UTF-32 are recognised. Another encoding is named by `ingest.encoding` or by a recipe; a
file that is UTF-8 from end to end stays UTF-8 all the same.
"""

import codecs
import io
import re
from dataclasses import dataclass, replace

from pipeline.errors import UserError
from pipeline.ingest.config import ENCODING_SAMPLE, usual_encoding
from pipeline.ingest.packing import BUFFER_BYTES, open_unpacked
from pipeline.ingest.sources import RawFile

HEAD_BYTES = 64 << 10
UTF_8 = ("utf-8", "utf-8-sig")
MARKS = {  # byte-order marks; the longer ones come first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
WESTERN = ("iso8859-1", "cp1252", "iso8859-15", "iso8859-9", "cp1254", "cp850", "mac-roman")


def read_head(file: RawFile) -> bytes:
    """Return the first bytes of a file, unpacked."""
    with open_unpacked(file.path, file.name, file.limits.file_bytes) as stream:
        return stream.read(HEAD_BYTES)


def find_encoding(file: RawFile, head: bytes, declared: str = "") -> str:
    """Return the encoding of a text file.

    Args:
        head: the first bytes of the file.
        declared: the encoding that `ingest.encoding` or a recipe names; it counts where the file is not UTF-8, and
            where no byte-order mark tells another one.

    Raises:
        UserError: `declared` is an encoding of Western languages, and some lines of the file are UTF-8.
    """
    for mark, encoding in MARKS.items():
        if head.startswith(mark):
            return encoding
    declared = usual_encoding(declared) if declared else "utf-8"
    if declared in UTF_8:
        return _wide_encoding(head) or "utf-8"
    if ENCODING_SAMPLE.encode(declared) != ENCODING_SAMPLE.encode():
        return declared  # UTF-16 and the like: ASCII is written in another way
    found = EncodingSurvey.of(file)
    if found.utf_8 and not found.other:
        return "utf-8"
    if found.utf_8 and declared in WESTERN:
        raise mixed_encodings(file, found)
    return declared


def settle_encoding(file: RawFile) -> RawFile:
    """Return a file of a recipe with the encoding that it has: someone may have converted it to UTF-8."""
    if file.format.kind == "parquet":
        return file
    encoding = find_encoding(file, read_head(file), file.format.encoding)
    return replace(file, format=replace(file.format, encoding=encoding))


def _wide_encoding(head: bytes) -> str | None:
    """Return UTF-16's name where a text without a byte-order mark is surely UTF-16: half of its bytes are zero."""
    head = head[: len(head) // 2 * 2]
    if len(head) < 4:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    least = 0.4 * len(head) / 2
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros >= least and others <= 0.02 * zeros:
            try:
                text = head.decode(encoding)
            except UnicodeDecodeError as error:
                if error.end < len(head):  # not only a last pair that was cut
                    continue
                text = head[:-2].decode(encoding, "replace")
            if "\n" in text:
                return encoding
    return None


@dataclass(frozen=True, kw_only=True)
class EncodingSurvey:
    """The lines of a file that are not ASCII.

    utf_8: how many of them are valid UTF-8. other: how many are not. first_utf_8, first_other: the first such lines.
    column, byte: where the first invalid byte of `first_other` stands, from 1, and its value. bad: bytes of invalid
    lines that are not ASCII, of the first such lines.
    """

    utf_8: int
    other: int
    first_utf_8: int
    first_other: int
    column: int
    byte: int
    bad: bytes

    @classmethod
    def of(cls, file: RawFile) -> "EncodingSurvey":
        """Read a file of an encoding that writes ASCII as ASCII."""
        utf_8 = other = first_utf_8 = first_other = column = byte = 0
        bad = b""
        with open_unpacked(file.path, file.name, file.limits.file_bytes) as stream:
            for line, raw in enumerate(stream, 1):
                if raw.isascii():
                    continue
                try:
                    raw.decode("utf-8")
                    utf_8 += 1
                    first_utf_8 = first_utf_8 or line
                except UnicodeDecodeError as error:
                    other += 1
                    if not first_other:
                        first_other = line
                        column = error.start + 1
                        byte = raw[error.start]
                    if len(bad) < 1000:
                        bad += _marked(raw)
        return cls(
            utf_8=utf_8,
            other=other,
            first_utf_8=first_utf_8,
            first_other=first_other,
            column=column,
            byte=byte,
            bad=bad,
        )


def _marked(raw: bytes) -> bytes:
    """Return the bytes beyond ASCII, and a blank for each run of ASCII."""
    return b" ".join(part for part in bytes(b if b > 127 else 32 for b in raw).split(b" ") if part) + b" "


def open_utf8(file: RawFile) -> io.BufferedReader:
    """Open a text file for reading its content as UTF-8.

    Raises:
        UserError: now or at any later read: the content is not in the encoding of `file.format`, or the file is packed
            and was cut short.
    """
    return io.BufferedReader(_Utf8(file), BUFFER_BYTES)


class _Utf8(io.RawIOBase):
    def __init__(self, file: RawFile):
        self.file = file
        self.stream = open_unpacked(file.path, file.name, file.limits.file_bytes)
        self.plain = codecs.lookup(file.format.encoding).name in UTF_8
        self.decoder = codecs.getincrementaldecoder(file.format.encoding)()
        self.lines = 0  # line breaks so far, of a file that is not UTF-8
        self.rest = memoryview(b"")  # what was read and not yet given
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self.rest and not self.ended:
            self.rest = memoryview(self._block())
        taken = self.rest[: len(buffer)]
        buffer[: len(taken)] = taken
        self.rest = self.rest[len(taken) :]
        return len(taken)

    def _block(self) -> bytes:
        raw = self.stream.read(BUFFER_BYTES)
        self.ended = not raw
        try:
            text = self.decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            raise wrong_encoding(self.file, self.lines + 1 + self._lines_before(error)) from None
        if self.plain:
            return raw
        self.lines += text.count("\n")
        return text.encode("utf-8", "replace")

    def _lines_before(self, error: UnicodeDecodeError) -> int:
        good = bytes(error.object[: error.start])
        return 0 if self.plain else good.decode(self.file.format.encoding, "replace").count("\n")

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
        super().close()


def wrong_encoding(file: RawFile, line: int) -> UserError:
    """Say where a file leaves its encoding, and what to do; of a file that should be UTF-8, `line` is found anew."""
    encoding = file.format.encoding
    if codecs.lookup(encoding).name not in UTF_8:
        return UserError(
            f"{file.name}, line {line:,}: not valid {encoding}",
            "the file is in another encoding, or it was cut short",
            "set ingest.encoding to the file's encoding, or convert the file: iconv -f ENCODING -t utf-8 OLD > NEW",
        )
    found = EncodingSurvey.of(file)
    if found.utf_8 and found.other:
        return mixed_encodings(file, found)
    return UserError(
        f"{file.name}, line {found.first_other:,}: not valid UTF-8 (byte {found.column:,} of the line is "
        f"0x{found.byte:02x})",
        f"{_count(found.other)} such bytes; {_likely(found.bad)}",
        "set ingest.encoding, for example to cp1252 (Windows-1252 and Latin-1), or convert the file: "
        "iconv -f cp1252 -t utf-8 OLD > NEW",
    )


def mixed_encodings(file: RawFile, found: EncodingSurvey) -> UserError:
    """Name the lines of a file that is UTF-8 in some lines only."""
    return UserError(
        f"{file.name}, line {found.first_other:,}: not valid UTF-8 (byte {found.column:,} of the line is "
        f"0x{found.byte:02x}), but line {found.first_utf_8:,} is",
        f"the file mixes encodings: {_count(found.other)} bytes that are not UTF-8, {_count(found.utf_8)} UTF-8 beyond "
        f"ASCII; {_likely(found.bad)}",
        "write all lines in one encoding: no setting can read both",
    )


def _count(lines: int) -> str:
    return f"{lines:,} line{'s have' if lines > 1 else ' has'}"


def _likely(bad: bytes) -> str:
    """Say which encoding the bytes beyond ASCII probably are in; Western texts have them one at a time."""
    runs = bad.split()
    if any(len(run) > 3 for run in runs) and sum(map(len, runs)) > 2.5 * len(runs):
        return "the text is probably Cyrillic (cp1251), Chinese (gb18030), Japanese (shift_jis) or Korean (cp949)"
    return "the text is probably Latin-1 or Windows-1252 (cp1252)"


def decode_head(head: bytes, encoding: str) -> str:
    """Return the text of a file's first bytes without a byte-order mark."""
    return head.decode(encoding, "replace").removeprefix("\ufeff")


def complete_lines(text: str, *, cut: bool) -> list[str]:
    """Return the lines of a text; the last one is left out where the text was cut."""
    lines = re.split(r"\r\n|\n|\r", text)
    return lines[:-1] if cut and len(lines) > 1 else lines
