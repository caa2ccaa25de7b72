"""Second half of the stage: Ibis expressions that DuckDB and Spark both run. They filter, take the k-core and number.

Integers replace raw ids before the costly steps. A user becomes the source row of its first interaction. An item
becomes its record in the item file or, without such a file, the source row of its first interaction. Dense ids number
the users and items that are left, in the order of these integers. No action of a log has a name that begins with two
underscores, so such names are free for columns of this file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _
from ibis.expr.types import Table

from pipeline.artifacts import MICROSECONDS
from pipeline.errors import UserError
from pipeline.ingest.cut import cut_ids, write_cut
from pipeline.ingest.engines import Engine

EXTREME = {"first": "earliest", "last": "latest"}  # ingest.repeats -> its word in the steps of ingest.json


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The cleaned and numbered log.

    log: user_id, item_id int32, timestamp int64, position int32, then the actions; sorted by (user_id, position).
    time_unit: of timestamp; `s` where all times are whole seconds, else `us`.
    users: user_id, raw_id. items: item_id, raw_id, source_row (with an item file the record there), then its texts.
    steps: interactions, users and items after each filter, in the order of the filters. rounds: those of the k-core.
    """

    log: pa.Table
    users: pa.Table
    items: pa.Table
    steps: list[dict[str, Any]]
    rounds: int
    time_unit: str


def clean(
    engine: Engine,
    log: Path,
    items: Path | None,
    minimum: Mapping[str, float],
    k: int,
    *,
    repeats: str = "first",
    cut: Path | None = None,
) -> Cleaned:
    """Filter, deduplicate, take the k-core and number what is left.

    Args:
        log: the log as staging.py writes it, a Parquet file.
        items: the item file as staging.py writes it; None if there is none.
        minimum: action column -> least value of an interaction.
        repeats: which interactions of a user with an item count: `first`, `last`, or all of them (`keep`).
        cut: the file that will list the users and items that are left out; None: no file.

    Raises:
        UserError: a filter leaves nothing.
    """
    staged = engine.read(log)
    actions = [name for name in staged.columns if name not in ("source_row", "user", "item", "timestamp")]
    interactions = staged
    steps = [_count("usable rows", interactions)]

    # minimum {"click": 1} leaves out the rows whose click is 0
    if minimum:
        interactions = interactions.filter([_[name] >= least for name, least in minimum.items()])
        steps.append(_count("minimum " + ", ".join(f"{name} >= {v:g}" for name, v in minimum.items()), interactions))

    # Raw ids become integers: rows 0 (ann, tea), 1 (bob, jam), 2 (ann, jam) -> users ann 0, bob 1; items tea 0, jam 1.
    users = _first_rows(engine, interactions, "user")
    catalogue = engine.read(items) if items else _first_rows(engine, interactions, "item")
    encoded = encode(interactions, users, catalogue)

    # Only one interaction of a user with an item remains: of (ann, tea) at 5 and at 9 the first is (ann, tea) at 5.
    coded = engine.materialize(encoded if repeats == "keep" else one_of_each(encoded, last=repeats == "last"))
    if repeats != "keep":
        steps.append(_count(f"{EXTREME[repeats]} of each user and item", coded))

    core, rounds = k_core(engine, coded, k)
    core_log = engine.materialize(core)
    steps.append(_core_step(engine, core_log, k, steps, encoded))
    if cut:
        named = {"user": (users, False), "item": (catalogue, items is not None)}
        left_out = [
            cut_ids(column, log=staged, names=names, counted=coded, left=core_log, listed=listed)
            for column, (names, listed) in named.items()
        ]
        rule = ", ".join(f"{name} >= {least:g}" for name, least in minimum.items())
        write_cut(cut, left_out, {"k_core": str(k), "minimum": rule})
    numbered, named_users, named_items = number(engine, core_log, users, catalogue, actions)
    timed, unit = with_unit(numbered)
    return Cleaned(log=timed, users=named_users, items=named_items, steps=steps, rounds=rounds, time_unit=unit)


def _first_rows(engine: Engine, interactions: Table, column: str) -> Table:
    """Return raw_id and source_row of the first interaction of each user or item."""
    return engine.materialize(interactions.group_by(raw_id=column).agg(source_row=_.source_row.min()))


def encode(interactions: Table, users: Table, items: Table) -> Table:
    """Replace the raw ids of users and items by their source rows."""
    # (ann, jam, time 7) with ann's first row 0 and jam's first row 1 -> (0, 1, time 7)
    for column, table in (("user", users), ("item", items)):
        codes = table.select(__raw_id="raw_id", __code="source_row")
        interactions = interactions.join(codes, interactions[column] == codes["__raw_id"]).drop(column, "__raw_id")
        interactions = interactions.rename({column: "__code"})
    return interactions


def one_of_each(interactions: Table, *, last: bool) -> Table:
    """Return the first interaction of each (user, item), by time and then by source row; or the last one."""
    # __nth numbers the interactions of a user with an item 0, 1, ...; those with 0 remain.
    order = [_.timestamp.desc(), _.source_row.desc()] if last else ["timestamp", "source_row"]
    nth = ibis.row_number().over(group_by=["user", "item"], order_by=order)
    return interactions.mutate(__nth=nth).filter(_["__nth"] == 0).drop("__nth")


def k_core(engine: Engine, interactions: Table, k: int) -> tuple[Table, int]:
    """Find the largest part in which every user and every item has at least `k` interactions.

    Only the sets of users and items that are left are stored between rounds: to copy the interactions each time is what
    makes a k-core costly. The k-core is reached when a round removes nobody.

    Returns:
        (that part, the number of rounds)
    """
    users: Table | None = None
    items: Table | None = None
    rounds = 0
    sizes: tuple[int, ...] = ()
    while k > 1:
        # Users first, then items among what these users leave: an item that falls below k may pull down a user, who is
        # found in the next round.
        users = engine.materialize(_frequent(_within(interactions, users, items), "user", k))
        items = engine.materialize(_frequent(_within(interactions, users, items), "item", k))
        rounds += 1

        # sizes 9 users, 7 items, then 8, 7, then 8, 7 again: the third round removed nobody
        before = sizes
        sizes = tuple(int(table.count().to_pyarrow().as_py()) for table in (users, items))
        if sizes == before:
            break
    return _within(interactions, users, items), rounds


def _frequent(interactions: Table, column: str, k: int) -> Table:
    return interactions.group_by(column).agg(n=_.count()).filter(_.n >= k).select(column)


def _within(interactions: Table, users: Table | None, items: Table | None) -> Table:
    if users is not None:
        interactions = interactions.semi_join(users, "user")
    if items is not None:
        interactions = interactions.semi_join(items, "item")
    return interactions


def _core_step(engine: Engine, core_log: Table, k: int, steps: list[dict[str, Any]], encoded: Table) -> dict[str, Any]:
    """Return the last step.

    Raises:
        UserError: nothing is left. It names the repeats where the k-core is empty because they do not count.
    """
    try:
        return _count(f"{k}-core", core_log)
    except UserError:
        with_repeats = _totals(k_core(engine, engine.materialize(encoded), k)[0])
        if not with_repeats["interactions"]:
            raise
        before, after = _totals(encoded), steps[-1]
        raise UserError(
            f"nothing is left of the log after the filter '{k}-core', because repeats do not count",
            f"{before['users']:,} users have {before['interactions']:,} interactions with {before['items']:,} items; "
            f"one for each user and item leaves {after['interactions']:,}, and "
            f"{after['interactions'] / after['users']:.1f} for a user",
            f"set ingest.repeats=keep: then {with_repeats['interactions']:,} interactions are left of "
            f"{with_repeats['users']:,} users with {with_repeats['items']:,} items. Or lower ingest.k_core",
        ) from None


def _totals(interactions: Table) -> dict[str, int]:
    counts = interactions.agg(interactions=_.count(), users=_.user.nunique(), items=_.item.nunique())
    return {column: int(value) for column, value in counts.to_pyarrow().to_pylist()[0].items()}


def _count(name: str, interactions: Table) -> dict[str, Any]:
    step = {"step": name, **_totals(interactions)}
    if not step["interactions"]:
        raise UserError(
            f"nothing is left of the log after the filter '{name}'",
            "every user and every item needs enough interactions, and an interaction needs the values of "
            "ingest.minimum",
            "lower ingest.k_core (0 leaves out nobody) or ingest.minimum, or bring a larger log",
        )
    return step


def number(
    engine: Engine, core_log: Table, users: Table, catalogue: Table, actions: list[str]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return (log, users, items) with dense ids and positions, as `Cleaned` describes them."""
    # source rows of users 4, 9, 30 -> user_id 0, 1, 2; of items likewise
    user_ids = engine.materialize(_dense(core_log, "user"))
    item_ids = engine.materialize(_dense(core_log, "item"))

    # position 0, 1, ... within each user, by time; equal times in the order of the source
    by_time = ibis.row_number().over(group_by="user_id", order_by=["timestamp", "source_row"])
    log = core_log.join(user_ids, "user").join(item_ids, "item").mutate(position=by_time.cast("int32"))
    log = log.select("user_id", "item_id", "timestamp", "position", *actions).order_by("user_id", "position")

    named_users = user_ids.join(users, user_ids.user == users.source_row).select("user_id", "raw_id")
    named_items = item_ids.join(catalogue, item_ids.item == catalogue.source_row).drop("item")
    return (
        log.to_pyarrow(),
        named_users.order_by("user_id").to_pyarrow(),
        named_items.relocate("item_id", "raw_id").order_by("item_id").to_pyarrow(),
    )


def with_unit(log: pa.Table) -> tuple[pa.Table, str]:
    """Return the log, whose times are microseconds, in seconds if no time has a fraction; and the unit, `s` or `us`."""
    times = log["timestamp"]
    seconds = pc.divide(times, MICROSECONDS)  # exact, or not used
    if not pc.all(pc.equal(pc.multiply(seconds, MICROSECONDS), times)).as_py():
        return log, "us"
    return log.set_column(log.column_names.index("timestamp"), "timestamp", seconds), "s"


def _dense(core_log: Table, column: str) -> Table:
    """Return `column` and `column`_id, int32 0.. in the order of `column`."""
    ids = ibis.row_number().over(order_by=column).cast("int32")
    return core_log.select(column).distinct().mutate(ids.name(f"{column}_id"))
