"""Turn raw ids, as a user types them, into dense ids, by the rule that ingest reads ids by."""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError
from pipeline.printing import shown

if TYPE_CHECKING:
    import pandas as pd

CANDIDATES = 100_000  # known ids among which the nearest ones to an unknown id are searched
WHOLE_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]*))?(?:[eE]\+?([0-9]{1,2}))?")


def whole_number(text: str) -> str | None:
    """Return the digits of a whole number, without a point or an exponent; None for another text.

    "7", "7.0" and "7e0" are "7", and "1.25e3" is "1250". "007", "+7" and "7.5" are no whole numbers: somebody who wrote
    them meant a name.
    """
    match = WHOLE_NUMBER.fullmatch(text)
    if match is None:
        return None
    sign, whole, fraction, exponent = match.groups("")
    shift = int(exponent or 0)
    fraction = fraction.ljust(shift, "0")
    digits = (whole + fraction[:shift]).lstrip("0") or "0"
    return None if fraction[shift:].strip("0") else (sign if digits != "0" else "") + digits


def find_ids(raw: Sequence[str], known: "pd.DataFrame") -> np.ndarray:
    """Return the dense ids of raw ids as `dense_ids` does, -1 where one is not known."""
    import pandas as pd

    names = pd.Index(known["raw_id"].astype(str))
    ids = names.get_indexer(pd.Index(raw, dtype=object))
    for row, name in enumerate(raw):
        for other in (name.strip(), whole_number(name.strip())):
            if ids[row] < 0 and other is not None:
                ids[row] = names.get_indexer(pd.Index([other]))[0]
    return np.asarray(ids)


def dense_ids(raw: Sequence[str], known: "pd.DataFrame", kind: str, source: Path) -> np.ndarray:
    """Return the dense ids of raw ids: the rows of `known` that have them as raw_id.

    A raw id that is not known as it is typed is looked up without the blanks around it, then as a whole number: " 7"
    and "7.0" are 7.

    Args:
        known: a table with a column raw_id, row = dense id.
        kind: `user` or `item`, for the message.
        source: the file of `known`, for the message.

    Raises:
        UserError: a raw id is not known; the message names the nearest known ones.
    """
    ids = find_ids(raw, known)
    names = known["raw_id"].astype(str)
    unknown = [name for name, index in zip(raw, ids, strict=True) if index < 0]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names[:CANDIDATES], n=3, cutoff=0.5)
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UnknownIdError(
            kind,
            unknown[0],
            f"{kind} '{shown(unknown[0])}' is not known{others}",
            f"{source} lists {len(names):,} {kind}s",
            f"did you mean {' or '.join(map(shown, close))}?"
            if close
            else f"give an id of that file, such as {', '.join(map(shown, names[:3]))}",
        )
    return ids


class UnknownIdError(UserError):
    """An error about a raw id that no user or item has."""

    def __init__(self, kind: str, raw_id: str, what: str, why: str, fix: str):
        super().__init__(what, why, fix)
        self.kind = kind
        self.raw_id = raw_id


@contextmanager
def naming_the_cut(cut: Path) -> Iterator[None]:
    """Let an UnknownIdError from inside say whether ingest left the id out, and why.

    Args:
        cut: the list of what ingest left out (`artifacts.Interactions.cut`); where it is missing, the error says so.
    """
    try:
        yield
    except UnknownIdError as error:
        if not cut.exists():
            why = f"{error.why}; whether ingest left it out is not known, because {cut} is not here"
            raise UserError(error.what, why, error.fix) from None
        raise _left_out(error, cut) or error from None


def _left_out(error: UnknownIdError, cut: Path) -> UserError | None:
    """Return the error about an id that ingest left out; None if it is not in the list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = error.raw_id.strip()
    names = [error.raw_id, name, whole_number(name) or name]
    try:
        found = pq.read_table(cut, filters=[("kind", "=", error.kind), ("raw_id", "in", names)]).to_pylist()
        metadata = pq.read_schema(cut).metadata or {}
    except (OSError, pa.ArrowException):  # the file is damaged, and the id is not known all the same
        return None
    if not found:
        return None
    rows, interactions = found[0]["rows"], found[0]["interactions"]
    k_core = metadata.get(b"k_core", b"0").decode()
    if not rows:
        why = "it is in the item file, and the log has no row of it"
    elif not interactions:
        rule = metadata.get(b"minimum", b"").decode()
        why = f"it is in the log with {rows:,} rows, none of which passes ingest.minimum ({rule})"
    elif interactions < int(k_core):
        count = "1 interaction" if interactions == 1 else f"{interactions:,} interactions"
        why = f"it is in the log with {count}, below ingest.k_core {k_core}"
    else:
        other = "items" if error.kind == "user" else "users"
        why = (
            f"it is in the log with {interactions:,} interactions, fewer than ingest.k_core {k_core} of them "
            f"with {other} that are left"
        )
    fix = {
        "user": "give the items by --history, or lower ingest.k_core and run `dvc repro`",
        "item": "name other items, or lower ingest.k_core and run `dvc repro`",
    }
    return UserError(f"{error.kind} '{shown(name)}' was left out by ingest", why, fix[error.kind])
