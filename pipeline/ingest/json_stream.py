"""Read JSON values that do not have a line each: an array of objects, or objects one after the other, with breaks.

The text is read a block at a time, so that a large array never lies in memory as a whole.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from pipeline.errors import UserError

BLOCK_CHARACTERS = 1 << 20
NEAR_END = 16  # an error within so many characters of the end may come from a token that is cut there
BLANKS = re.compile(r"[ \t\r\n\ufeff]*")
BROKEN = object()  # stands for a value that cannot be read

JsonValue = tuple[int, str, Any]  # (line on which it begins, the text, the value or `BROKEN`)


def json_values(stream: TextIO, name: str, limit: int) -> Iterator[JsonValue]:
    """Yield the elements of an array, or values that stand one after the other; numbers stay text.

    Args:
        name: of the file, for messages.
        limit: characters that a value may have, ingest.max_line_bytes.

    Raises:
        UserError: the array has no end, because the file was cut short, or a value is longer than `limit`.
    """
    yield from _Values(stream, name, limit).all()


class _Values:
    def __init__(self, stream: TextIO, name: str, limit: int):
        self.stream = stream
        self.name = name
        self.limit = limit
        self.decoder = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
        self.text = ""  # read and not yet taken, from `at` on
        self.at = 0
        self.line = 1  # of `at`
        self.begun = False
        self.indent: str | None = None  # blanks before the value on its line; None where something else stands there

    def all(self) -> Iterator[JsonValue]:
        depth = 0  # 1 inside the array
        while self._next_token():
            sign = self.text[self.at]
            if sign == "[" and not depth:
                depth = 1
                self._move(self.at + 1)
            elif sign == "]" and depth:
                depth = 0
                self._move(self.at + 1)
            elif sign == ",":
                self._move(self.at + 1)
            else:
                line = self.line
                value, end = self._value()
                text = self.text[self.at : end]
                self._move(end)
                yield line, text.rstrip(", \t\r\n") if value is BROKEN else text, value
        if depth:
            raise UserError(
                f"{self.name} was cut short: its JSON array has no end",
                "the rows after the last complete one are missing",
                "write or copy the file again; the last character must be ]",
            )

    def _more(self) -> bool:
        """Read a block behind the rest of the text; what was taken is forgotten.

        The block is as long as the rest, so that a long value is not parsed again for each of many blocks.
        """
        block = self.stream.read(max(BLOCK_CHARACTERS, len(self.text) - self.at))
        self.text, self.at = self.text[self.at :] + block, 0
        return bool(block)

    def _move(self, end: int) -> None:
        self.line += self.text.count("\n", self.at, end)
        self.at = end

    def _next_token(self) -> bool:
        """Go to the next character that is no blank; False at the end of the file."""
        self.indent, self.begun = None if self.begun else "", True
        while True:
            match = BLANKS.match(self.text, self.at)
            end = match.end() if match else self.at
            if "\n" in self.text[self.at : end]:
                self.indent = self.text[self.text.rindex("\n", self.at, end) + 1 : end]
            self._move(end)
            if self.at < len(self.text):
                return True
            if not self._more():
                return False

    def _value(self) -> tuple[Any, int]:
        """Return the value that begins at `at`, and where it ends."""
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - NEAR_END
                wrong = error.pos - self.at  # reading more moves `at`
                if cut and len(self.text) - self.at <= self.limit and self._more():
                    continue
                return BROKEN, self._end_of_broken(self.at + wrong)
            except RecursionError:
                return BROKEN, self._end_of_broken(self.at + 1)
            length = end - self.at
            if end + NEAR_END > len(self.text) and self.text[end - 1] not in '"]}' and self._more():
                continue  # 12 may go on as 123
            if length > self.limit:
                raise self._too_long()
            return value, self.at + length

    def _end_of_broken(self, wrong: int) -> int:
        """Return where the value after a broken one begins, or the array ends; `wrong` is where the error was found."""
        # A value that begins a line ends before the next line of the same indentation that begins with a brace. Of
        # values on one line the next is thought to begin at "}, {" after the error.
        by_line = self.indent is not None
        pattern = re.compile(rf"\n{self.indent or ''}(?=\{{)|\n[ \t]*(?=\]\s*\Z)" if by_line else r"\}\s*,\s*(?=\{)")
        start = self.at if by_line else min(max(wrong - 1, self.at), len(self.text))
        while True:
            if match := pattern.search(self.text, start):
                return match.end()
            if len(self.text) - self.at > self.limit:
                raise self._too_long()
            start -= self.at
            if not self._more():
                return self._end_of_file()

    def _too_long(self) -> UserError:
        return UserError(
            f"{self.name}, line {self.line:,}: a JSON value is longer than ingest.max_line_bytes, {self.limit:,}",
            "a bracket or a quote was probably opened and never closed",
            "mend the file there, or raise ingest.max_line_bytes if the value is meant to be so long",
        )

    def _end_of_file(self) -> int:
        """Return where a broken value ends that no other follows: before the bracket that closes the array."""
        end = len(self.text.rstrip())
        if self.text[end - 1] == "]" and end - 1 > self.at:
            return end - 1
        return len(self.text)
