"""Bounds of knobs, beside the type of a dataclass's field, and the one reader that keeps to them.

A field says `codes: Annotated[int, Between(2, 65_536)]`. The reader turns plain values, as YAML and JSON have them,
into the dataclass. It refuses what is not finite or out of bounds, and names the key, the value and the bounds in one
line. The settings of params.yaml and those of a saved model pass through it.
"""

import dataclasses
import math
import re
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pipeline.errors import nearest

EXACT = 2**53  # up to here every whole number is a float
NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
FRACTION = re.compile(r"([+-]?\d+) ?/ ?(\d+)")
EXPONENT = re.compile(r"[+-]?\d+(?:\.\d*)?[eE]\+?\d+")
LONGEST_NUMBER = 60  # characters of a number that is written as text
MOST_ENTRIES = 1000  # of a list or a mapping

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 4
_SHORT.maxstring = _SHORT.maxother = 60


@dataclass(frozen=True)
class Between:
    """A number lies between two bounds, which belong to it unless `above` and `below` say otherwise."""

    least: float
    most: float
    above: bool = False  # more than `least`
    below: bool = False  # less than `most`
    why: str = ""  # the reason for the bounds, where they do not speak for themselves

    def holds(self, value: float) -> bool:
        """Tell whether the number lies between the bounds; NaN never does."""
        over = value > self.least if self.above else value >= self.least
        return over and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        reason = f": {self.why}" if self.why else ""
        if not (self.above or self.below):
            return f"from {_plain(self.least)} to {_plain(self.most)}{reason}"
        first = f"above {_plain(self.least)}" if self.above else f"at least {_plain(self.least)}"
        return (
            first + (f" and below {_plain(self.most)}" if self.below else f" and at most {_plain(self.most)}") + reason
        )


@dataclass(frozen=True)
class Text:
    """A text has this many characters."""

    least: int = 0
    most: int = 4096

    def holds(self, value: str) -> bool:
        """Tell whether the text is as long, and whether files and terminals can hold it: no NUL, no half characters."""
        return self.least <= len(value) <= self.most and "\0" not in value and not re.search("[\ud800-\udfff]", value)

    def __str__(self) -> str:
        least = "" if not self.least else "one character to " if self.least == 1 else f"{self.least:,} to "
        return f"of {least or 'at most '}{self.most:,} characters"


Ratio = Annotated[float, Between(0, 1)]
RatioBelow1 = Annotated[float, Between(0, 1, below=True)]  # a share that leaves something
Name = Annotated[str, Text(1)]  # a text that is not empty
WITHOUT_BOUNDS: dict[type, Between | Text] = {
    int: Between(-EXACT, EXACT),
    float: Between(-1e15, 1e15),
    str: Text(),
}


def short(value: Any) -> str:
    """Return a value as one short line, however large or deep it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 170:
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    if isinstance(value, str) and len(value) > _SHORT.maxstring:
        return f"{_SHORT.repr(value)} ({len(value):,} characters)"
    return value.isoformat() if isinstance(value, date) else _SHORT.repr(value)


def _key(value: Any) -> str:
    """Return a name as it was written, or as `short` has it where it is no short text."""
    return value if isinstance(value, str) and len(value) <= 100 else short(value)


def read_section(
    kind: type,
    raw: Any,
    prefix: str,
    problems: list[str],
    missing: list[str],
    *,
    hints: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Return the values of the dataclass `kind` from plain values; None where a line was added.

    Args:
        prefix: what stands before a key in messages, such as `train.`.
        problems: gets a line for each unknown key and bad value.
        missing: gets a line for each key that `raw` lacks.
        hints: the type of each key; None: as the dataclass says.
    """
    if not isinstance(raw, dict):
        problems.append(f"{prefix.rstrip('.') or 'the file'} must be a mapping of names to values, found {short(raw)}")
        return None
    hints = types_of(kind) if hints is None else hints
    values: dict[str, Any] = {}
    before = len(problems) + len(missing)
    for key, value in raw.items():
        if key not in hints:
            text = _key(key)
            problems.append(f"unknown key '{prefix}{text}': {nearest(text, hints)}")
        elif dataclasses.is_dataclass(hints[key]):
            section = typing.cast(type, hints[key])
            values[key] = build_section(section, value, f"{prefix}{key}.", problems, missing)
        else:
            values[key] = _convert(value, hints[key], f"{prefix}{key}", problems)
    missing += [f"missing key '{prefix}{key}'" for key in hints if key not in raw]
    return values if len(problems) + len(missing) == before else None


def build_section(kind: type, raw: Any, prefix: str, problems: list[str], missing: list[str]) -> Any:
    """Return the dataclass `kind` from plain values. Arguments and result are those of `read_section`."""
    values = read_section(kind, raw, prefix, problems, missing)
    try:
        return None if values is None else kind(**values)
    except ValueError as error:
        problems.append(str(error))
        return None


@cache
def types_of(kind: type) -> dict[str, Any]:
    """Return the type of each field, with its bounds. The result is shared: copy it to change it."""
    found = typing.get_type_hints(kind, include_extras=True)
    return {field.name: found[field.name] for field in dataclasses.fields(kind)}


def _convert(value: Any, hint: Any, name: str, problems: list[str]) -> Any:
    """Convert `value` to the type `hint`, or add a line to `problems`."""
    hint, bounds = get_args(hint)[:2] if get_origin(hint) is Annotated else (hint, None)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            problems.append(f"{name} is {short(value)}, {nearest(_key(value), [str(a) for a in args])}")
        return value
    if origin in (typing.Union, types.UnionType):
        for option in sorted(args, key=lambda option: option is not type(value)):  # 5.0 stays a float
            attempt: list[str] = []
            converted = _convert(value, option, name, attempt)
            if not attempt:
                return converted
        problems.append(f"{name} is {short(value)}, expected {' or '.join(map(_expected, args))}")
        return value
    if origin in (tuple, dict):
        return _collection(value, origin, args, name, problems)
    bounds = bounds or WITHOUT_BOUNDS.get(hint)
    converted = _scalar(value, hint)
    if converted is None or (bounds is not None and not bounds.holds(converted)):
        problems.append(f"{name} is {short(value)}, expected {_expected(hint, bounds)}")
        return value
    return converted


def _collection(value: Any, origin: type, args: tuple[Any, ...], name: str, problems: list[str]) -> Any:
    """Convert a list to a tuple, or the values of a mapping, or add lines to `problems`.

    An empty text is a mapping without entries: `dvc exp run -S 'name={...}'` can replace it, and no empty mapping.
    """
    word = "list" if origin is tuple else "mapping"
    if origin is dict and value in ("", None):
        return {}
    if not isinstance(value, list if origin is tuple else dict):
        problems.append(f"{name} must be a {word}, found {short(value)}")
        return origin()
    if len(value) > MOST_ENTRIES:
        problems.append(f"{name} has {len(value):,} entries, expected a {word} of at most {MOST_ENTRIES:,}")
        return origin()
    if isinstance(value, list):
        return tuple(_convert(entry, args[0], f"{name}[{i}]", problems) for i, entry in enumerate(value))
    if args[1] is str:  # a column may be called 0, and a name that was deleted leaves nothing
        value = {
            key: "" if inner is None else str(inner) if _is_small(inner) else inner for key, inner in value.items()
        }
    keys = {key: _convert(str(key), args[0], f"a key of {name}", problems) for key in value}
    return {keys[key]: _convert(inner, args[1], f"{name}.{_key(keys[key])}", problems) for key, inner in value.items()}


def _is_small(value: Any) -> bool:
    return type(value) is int and abs(value) <= EXACT


def _scalar(value: Any, hint: type) -> Any:
    """Convert to one type, or return None."""
    if hint is float:
        return _number(value)
    if hint is int:
        return _whole(value)
    if hint is str and type(value) is date:
        return value.isoformat()  # an unquoted 2014-01-01, which YAML reads as a date
    return value if type(value) is hint else None


def _number(value: Any) -> float | None:
    """Read a number. Text too: `1e-3`, which YAML 1.1 reads as such, and `1/3`, which no decimal can say."""
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER:
        text = value.strip()
        if (fraction := FRACTION.fullmatch(text)) and int(fraction[2]):
            return _number(int(fraction[1]) / int(fraction[2]))
        return float(text) if NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _whole(value: Any) -> int | None:
    """Read a whole number. `1e6` too, which is text in YAML 1.1 and a float in YAML 1.2."""
    if type(value) is int:
        return value
    if isinstance(value, str) and len(value) <= LONGEST_NUMBER and EXPONENT.fullmatch(value):
        value = float(value)
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= EXACT else None


def _expected(hint: Any, bounds: Between | Text | None = None) -> str:
    """Say what a type and its bounds allow."""
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)[:2]
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a list of these"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    bounds = bounds or WITHOUT_BOUNDS.get(hint)
    return words[hint] + (f" {bounds}" if bounds else "")


def _plain(bound: float) -> str:
    """Write a bound: 1,000,000 or 1e-06."""
    return f"{int(bound):,}" if float(bound).is_integer() and abs(bound) < 1e13 else f"{bound:g}"
