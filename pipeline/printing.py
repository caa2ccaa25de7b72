"""Print lines for a person. Characters that would steer the terminal are shown as escapes and never sent.

Ids, titles, names of columns and of files come from data that somebody else may have written. ESC ] 0 ; in a title
would set the terminal's title, a line break would add a line that no command wrote, and U+202E would reverse what
follows. `say` is the one function of the package that prints. The user name and password in a URL are not printed.
"""

import json
import re
import sys
from pathlib import Path

# C0 but tab and line feed; DEL and C1; marks of direction; line and paragraph separators; halves of characters.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
BREAKING = re.compile("[\t\n]")
SECRET = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#]*@")  # http://me:S3CRET@host


_state = {"quiet": False}


def be_quiet(quiet: bool) -> None:
    """Choose whether lines are printed that are neither an answer nor an error, such as what a stage did."""
    _state["quiet"] = quiet


def is_quiet() -> bool:
    """Return what `be_quiet` chose; at the start False."""
    return _state["quiet"]


def say(*lines: object, end: str = "\n", error: bool = False, answer: bool = False) -> None:
    """Print the lines, to stderr if `error`, with steering characters as escapes and without secrets of URLs.

    Text from data that is to stay on its line goes through `shown` first. A character that the stream cannot encode is
    an escape too.

    Args:
        error: an error, a warning or a note to the user.
        answer: what the command was asked for. Lines that are neither are left out where `be_quiet` says so.
    """
    if is_quiet() and not (error or answer):
        return
    stream = sys.stderr if error else sys.stdout
    text = hide_secrets(escape("\n".join(str(line) for line in lines)))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=True)


def shown(value: object) -> str:
    """Return text from data as it may stand inside a line: a line break or tab is an escape too."""
    return BREAKING.sub(_escape, escape(str(value)))


def json_text(value: object, file: Path | None = None) -> str:
    """Return JSON as it is printed: letters of any language as they are, in a file or on a stream of UTF-8.

    On any other stream they are escapes, because a backslash of another kind would be no JSON.

    Args:
        file: where the text is written; None: it is printed.
    """
    if file is not None:
        return json.dumps(value, indent=2, ensure_ascii=False)
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    return json.dumps(value, indent=2, ensure_ascii=encoding not in ("utf-8", "utf8"))


def escape(text: str) -> str:
    r"""Return the text with each steering character as \uXXXX, which JSON reads as that character."""
    return STEERING.sub(_escape, text)


def hide_secrets(text: str) -> str:
    """Return the text with *** for user name and password of every URL in it."""
    return SECRET.sub(r"\1***@", text) if "://" in text else text


def _escape(character: re.Match[str]) -> str:
    return {"\n": "\\n", "\t": "\\t"}.get(character[0], f"\\u{ord(character[0]):04x}")
