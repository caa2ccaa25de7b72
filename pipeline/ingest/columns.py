"""Which column of a log is the user, the item, the time; which further ones are actions; and an item file's fields.

`ingest.columns` names them where the names below do not. Further numeric columns (rating, click, watch_seconds, ...)
are actions and are kept; text columns of a log are not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, nearest
from pipeline.ingest.values import numbers

# Lower case, underscores left out.
LOG_NAMES = {
    "user": ("user", "userid", "reviewerid"),
    "item": ("item", "itemid", "asin", "movieid"),
    "timestamp": ("timestamp", "time", "unixtime", "unixreviewtime"),
}
ITEM_NAMES = {
    "item": LOG_NAMES["item"],
    "title": ("title",),
    "categories": ("categories", "category", "genres"),
    "description": ("description",),
    "image": ("image",),
}
OURS = ("user_id", "item_id", "position", "source_row")  # names of the output that an action cannot have


@dataclass(frozen=True)
class LogColumns:
    """The log's names of what we read; `actions` maps our name to the log's."""

    user: str
    item: str
    timestamp: str
    actions: Mapping[str, str]

    @property
    def wanted(self) -> list[str]:
        return [self.user, self.item, self.timestamp, *self.actions.values()]

    def named(self) -> dict[str, str]:
        """Our name -> the log's."""
        return {"user": self.user, "item": self.item, "timestamp": self.timestamp, **self.actions}


def recognise_log(sample: pa.Table, mapping: Mapping[str, str], source: str, *, guess_actions: bool) -> LogColumns:
    """Find user, item, timestamp and actions among the columns of a log's first rows.

    Args:
        mapping: our name -> the log's, from `ingest.columns` or a recipe; an empty name leaves that column out.
        guess_actions: also take the further columns that hold mostly numbers in these rows.

    Raises:
        UserError: a column is missing, or two could be meant; lists the columns found.
    """
    names = sample.column_names
    roles = {role: _find(role, names, mapping, LOG_NAMES, source) for role in LOG_NAMES}
    actions = {
        ours: _mapped(ours, theirs, names, source)
        for ours, theirs in mapping.items()
        if ours not in LOG_NAMES and ours not in ITEM_NAMES and theirs
    }
    if guess_actions:
        actions |= _guess_actions(sample, {*roles.values(), *mapping.values(), *mapping})
    clash = [name for name in actions if name in OURS or name.startswith("__")]
    if clash:
        raise UserError(
            f"ingest.columns names {clash[0]}, which is a column of ingest's own",
            "the names to give are user, item, timestamp, or that of an action",
            f"rename {clash[0]}",
        )
    return LogColumns(**roles, actions=actions)


def _guess_actions(sample: pa.Table, taken: set[str]) -> dict[str, str]:
    """Numeric columns that nothing else claims; neither nameless ones nor pandas' `__index_level_0__`, which are row
    numbers, nor a log's own `position`, which has to be mapped to another name."""
    known = {name for role in LOG_NAMES.values() for name in role}
    return {
        name: name
        for name in sample.column_names
        if name
        and not name.startswith("__")
        and name not in taken
        and name not in OURS
        and _plain(name) not in known
        and _is_numeric(sample[name])
    }


def recognise_items(names: Sequence[str], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """Our name -> the item file's, for item (always there) and every further column, known or not.

    Raises:
        UserError: there is no item column, or two columns could be meant; lists the columns found.
    """
    mapping = {
        ours: theirs for ours, theirs in mapping.items() if ours in ITEM_NAMES and (ours != "item" or theirs in names)
    }  # the log may call its items otherwise
    found = {"item": _find("item", names, mapping, ITEM_NAMES, source)}
    for ours in ITEM_NAMES:
        if ours in mapping or any(_plain(name) in ITEM_NAMES[ours] for name in names):
            found[ours] = _find(ours, names, mapping, ITEM_NAMES, source)
    for name in names:
        if name and name not in found.values() and name not in found:
            found[name] = name
    return found


def _find(
    role: str, names: Sequence[str], mapping: Mapping[str, str], known: Mapping[str, Sequence[str]], source: str
) -> str:
    if role in mapping:
        return _mapped(role, mapping[role], names, source)
    matches = [name for name in names if _plain(name) in known[role]]
    fix = f"name it: ingest.columns: {{{role}: NAME}}; recognised by themselves: {', '.join(known[role])}"
    if not matches:
        raise UserError(f"no column of {source} is known to be the {role}", _found(names), fix)
    if len(matches) > 1:
        raise UserError(f"{' and '.join(matches)} of {source} could both be the {role}", _found(names), fix)
    return matches[0]


def _mapped(ours: str, theirs: str, names: Sequence[str], source: str) -> str:
    if theirs not in names:
        raise UserError(
            f"{source} has no column '{theirs}', wanted as {ours}",
            _found(names),
            f"mend ingest.columns: {nearest(theirs, names)}",
        )
    return theirs


def _found(names: Sequence[str]) -> str:
    return f"columns found: {', '.join(names)}"


def _plain(name: str) -> str:
    return name.strip().replace("_", "").lower()


def _is_numeric(column: pa.ChunkedArray) -> bool:
    """Most of the values that are there are numbers; the others will be rejects."""
    values, missing = numbers(column.combine_chunks())
    return 2 * pc.count(values).as_py() > pc.sum(pc.invert(missing)).as_py()
