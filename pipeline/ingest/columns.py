"""Recognise the columns of a log (user, item, time, actions) and the fields of an item file.

In this folder "our name" of a column is its name in data/interactions, and "the log's name" is its name in the raw
file. `ingest.columns` names the columns that the lists below do not know. Further numeric columns (rating, click,
watch_seconds, ...) are actions and go into the output; further text columns of a log are left out.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, nearest
from pipeline.ingest.config import may_be_action
from pipeline.ingest.values import numbers
from pipeline.printing import shown

# The log's names that are recognised, in lower case and without blanks, underscores, dashes and dots.
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
# A name that goes before those above: Amazon's logs of 2023 have asin and parent_asin, their items parent_asin alone;
# KuaiRand's logs have date and time_ms.
BETTER_NAMES = {"item": ("parentasin",), "timestamp": ("timems",)}
# Names that count where no column has one of the above.
FURTHER_NAMES = {
    "user": ("customer", "customerid", "visitor", "visitorid", "member", "memberid", "uid", "accountid", "clientid"),
    "item": (
        *("product", "productid", "productcode", "sku", "stockcode", "goodsid", "iid", "articleid", "newsid", "bookid"),
        *("isbn", "videoid", "songid", "trackid", "artistid", "gameid", "appid", "businessid", "contentid", "venueid"),
    ),
    "timestamp": (
        *("eventtime", "eventtimestamp", "datetime", "seenat", "createdat", "viewedat", "clickedat", "playedat"),
        *("ratedat", "purchasedat", "orderedat", "occurredat", "visitedat", "ts", "unixtimestamp", "timestampms"),
        *("reviewtime", "purchasetime", "purchasedate", "ordertime", "orderdate", "invoicedate", "eventdate"),
        *("date", "reviewdate"),
    ),
    "title": ("productname", "producttitle", "itemname", "itemtitle", "movietitle", "name", "headline"),
    "categories": ("genre", "department", "productcategory", "categoryname", "maincategory"),
    "description": ("productdescription", "itemdescription", "overview", "abstract"),
}


@dataclass(frozen=True)
class LogColumns:
    """The columns that ingest reads, by the log's names.

    actions: our name -> the log's. filters: name in `ingest.where` -> the log's.
    """

    user: str
    item: str
    timestamp: str
    actions: Mapping[str, str]
    filters: Mapping[str, str] = field(default_factory=dict)

    @property
    def read(self) -> list[str]:
        """Return the log's names of all columns that are read, each once."""
        return list(dict.fromkeys([*self.wanted, *self.filters.values()]))

    @property
    def wanted(self) -> list[str]:
        """Return the log's names of the columns that stay: user, item, timestamp, then the actions."""
        return [self.user, self.item, self.timestamp, *self.actions.values()]

    def named(self) -> dict[str, str]:
        """Return our name -> the log's, of the columns that stay."""
        return {"user": self.user, "item": self.item, "timestamp": self.timestamp, **self.actions}


def recognise_log(
    sample: pa.Table,
    mapping: Mapping[str, str],
    source: str,
    *,
    guess_actions: bool,
    filters: Collection[str] = (),
    asked: Collection[str] = (),
) -> LogColumns:
    """Find user, item, timestamp and actions among the columns of a log's first rows.

    Args:
        sample: the first rows, all columns as text.
        mapping: our name -> the log's, from `ingest.columns` or a recipe; an empty name leaves that column out.
        source: the log's name, for error messages.
        guess_actions: also take the further columns that hold mostly numbers in these rows.
        filters: columns that `ingest.where` names, by the log's name or by ours.
        asked: columns that `ingest.actions` or `ingest.minimum` names. One of them that the log has is an action,
            whatever its first rows hold.

    Raises:
        UserError: a column is missing, or two columns could be meant; the message lists the columns found.
    """
    names = sample.column_names
    roles = {role: _find(role, names, mapping, LOG_NAMES, source) for role in LOG_NAMES}
    actions = {
        ours: _mapped(ours, theirs, names, source)
        for ours, theirs in mapping.items()
        if ours not in LOG_NAMES and ours not in ITEM_NAMES and theirs
    }
    taken = {*roles.values(), *mapping.values(), *mapping}
    actions |= {name: name for name in names if name in asked and name not in taken}
    if guess_actions:
        actions |= _guess_actions(sample, taken)
    _refuse_shared({**roles, **actions}, source)
    named = {**mapping, **roles, **actions}
    found = {name: name if name in names else named.get(name, "") for name in filters}
    for name, theirs in found.items():
        if theirs not in names:
            raise UserError(
                f"{source} has no column '{name}', which ingest.where names",
                _found(names),
                f"mend ingest.where: {nearest(name, names)}",
            )
    return LogColumns(**roles, actions=actions, filters=found)


def _guess_actions(sample: pa.Table, taken: set[str]) -> dict[str, str]:
    """Return the numeric columns that nothing else claims, each under the log's name.

    Left out are columns without a name and pandas' `__index_level_0__`, which are row numbers, and a log's column
    `position`, which `ingest.columns` has to map to another name.
    """
    known = {name for role in LOG_NAMES.values() for name in role}
    return {
        name: name
        for name in sample.column_names
        if may_be_action(name) and name not in taken and _plain(name) not in known and _is_numeric(sample[name])
    }


def needed_partition(
    names: Sequence[str], partition: Mapping[str, str], mapping: Mapping[str, str], known: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the partition's columns that a file with the columns `names` needs.

    A column is needed that `ingest.columns` (`mapping`) names, or that alone can have one of the `known` roles.
    """
    further = {name: value for name, value in partition.items() if name not in names}
    needed = {name for name in mapping.values() if name in further}
    for role in known:
        if role not in mapping and not _matches(role, names, known):
            needed.update(_matches(role, [*further], known)[:1])
    return {name: value for name, value in further.items() if name in needed}


def recognise_items(names: Sequence[str], mapping: Mapping[str, str], source: str) -> dict[str, str]:
    """Return our name -> the item file's, for item (always there) and every further column, known or not.

    Raises:
        UserError: there is no item column, or two columns could be meant; the message lists the columns found.
    """
    # `ingest.columns: {item: video}` may be about the log alone: it counts here only if the item file has that column.
    mapping = {
        ours: theirs for ours, theirs in mapping.items() if ours in ITEM_NAMES and (ours != "item" or theirs in names)
    }
    found = {"item": _find("item", names, mapping, ITEM_NAMES, source)}
    for ours in ITEM_NAMES:
        if ours in mapping or _matches(ours, names, ITEM_NAMES):
            found[ours] = _find(ours, names, mapping, ITEM_NAMES, source)
    _refuse_shared(found, source)
    usual = {theirs for ours, theirs in found.items() if ours in mapping or _plain(theirs) in ITEM_NAMES[ours]}
    for name in names:
        # A title called product_name is a column title and a column product_name: a template may name either.
        if name and name not in usual | {found["item"]} and name not in found:
            found[name] = name
    return found


def _refuse_shared(columns: Mapping[str, str], source: str) -> None:
    """Refuse a column of the file that is to be read under two of our names."""
    first: dict[str, str] = {}
    for ours, theirs in columns.items():
        if first.setdefault(theirs, ours) != ours:
            raise UserError(
                f"the column '{shown(theirs)}' of {source} is read as {shown(first[theirs])} and as {shown(ours)}",
                "one column can have one meaning only",
                f"mend ingest.columns: give {shown(first[theirs])} or {shown(ours)} another column, or take it out",
            )


def _find(
    role: str, names: Sequence[str], mapping: Mapping[str, str], known: Mapping[str, Sequence[str]], source: str
) -> str:
    if role in mapping:
        return _mapped(role, mapping[role], names, source)
    matches = _matches(role, names, known)
    usual = ", ".join((*known[role], *FURTHER_NAMES.get(role, ())))
    fix = f"name it: ingest.columns.{role}=NAME; names that are recognised: {usual}"
    if len(names) == 1 and re.search(r"[^\w.-]", names[0].strip()):
        fix = f"the name looks like several: set ingest.delimiter to what divides them, such as ' ' or ';'. Or {fix}"
    if not matches:
        raise UserError(f"no column of {source} is known to be the {role}", _found(names), fix)
    if len(matches) > 1:
        raise UserError(f"{' and '.join(map(shown, matches))} of {source} could both be the {role}", _found(names), fix)
    return matches[0]


def _matches(role: str, names: Sequence[str], known: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the columns that could have this role; a usual name goes before the further ones."""
    for usual in (BETTER_NAMES.get(role, ()), known[role], FURTHER_NAMES.get(role, ())):
        if matches := [name for name in names if _plain(name) in usual]:
            return matches
    return []


def _mapped(ours: str, theirs: str, names: Sequence[str], source: str) -> str:
    if theirs not in names:
        raise UserError(
            f"{source} has no column '{shown(theirs)}', which ingest.columns or the recipe reads as {ours}",
            _found(names),
            f"mend ingest.columns: {nearest(theirs, names)}",
        )
    return theirs


def _found(names: Sequence[str]) -> str:
    return f"columns found: {', '.join(map(shown, names))}"


def is_known_name(name: str) -> bool:
    """Tell whether a column of this name is recognised, in a log or in an item file."""
    lists = (BETTER_NAMES, LOG_NAMES, ITEM_NAMES, FURTHER_NAMES)
    return any(_plain(name) in names for known in lists for names in known.values())


def _plain(name: str) -> str:
    return re.sub(r"[\s_.-]", "", name).lower()


def _is_numeric(column: pa.ChunkedArray) -> bool:
    """Tell whether most of the values that are not missing are numbers; the other values will be null."""
    values, missing = numbers(column.combine_chunks())
    return bool(2 * pc.count(values).as_py() > pc.sum(pc.invert(missing)).as_py())


def check_actions(setting: str, names: Collection[str], columns: LogColumns) -> None:
    """Check that a setting, `ingest.minimum` or `ingest.actions`, names actions of the log.

    Raises:
        UserError: it names another column.
    """
    for name in names:
        if name not in columns.actions:
            raise UserError(
                f"{setting} names {shown(name)}, which is no action column of the log",
                f"action columns found: {', '.join(map(shown, columns.actions)) or 'none'}",
                f"mend {setting}: {nearest(name, columns.actions)}"
                if columns.actions
                else f"name the column, +ingest.columns.{shown(name)}=NAME, or leave {setting} empty",
            )
