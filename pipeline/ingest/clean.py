"""Second half of the stage, as Ibis expressions that DuckDB and Spark both run: filters, k-core, dense ids, positions.

Raw ids are replaced by integers before the costly steps: a user by the source row of its first event, an item by that
too, or by its record in the item file where there is one. Dense ids number the survivors in this order. No action of a
log has a name that begins with two underscores, so such names are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import pyarrow as pa
from ibis import _
from ibis.expr.types import Table

from pipeline.errors import UserError
from pipeline.ingest.engines import Engine


@dataclass(frozen=True)
class Cleaned:
    """What the log becomes.

    log: user_id, item_id int32, timestamp int64, position int32, then the actions; sorted by (user_id, position).
    users: user_id, raw_id. items: item_id, raw_id, source_row (with an item file the record there), then its texts.
    steps: interactions, users and items after each filter, in their order. passes: of the k-core.
    """

    log: pa.Table
    users: pa.Table
    items: pa.Table
    steps: list[dict[str, Any]]
    passes: int


def clean(engine: Engine, log: Path, items: Path | None, minimum: Mapping[str, float], k: int) -> Cleaned:
    """Filter, deduplicate, take the k-core and number what is left.

    Args:
        log, items: Parquet files as staging.py writes them.
        minimum: action column -> least value of an interaction.

    Raises:
        UserError: a filter leaves nothing.
    """
    events = engine.read(log)
    actions = [name for name in events.columns if name not in ("source_row", "user", "item", "timestamp")]
    steps = [_count("usable rows", events)]
    if minimum:
        events = events.filter([_[name] >= least for name, least in minimum.items()])
        steps.append(_count("minimum " + ", ".join(f"{name} >= {v:g}" for name, v in minimum.items()), events))
    users = engine.materialize(events.group_by(raw_id="user").agg(source_row=_.source_row.min()))
    catalogue = (
        engine.read(items)
        if items
        else engine.materialize(events.group_by(raw_id="item").agg(source_row=_.source_row.min()))
    )
    coded = engine.materialize(earliest(encode(events, users, catalogue)))
    steps.append(_count("earliest of each user and item", coded))
    core, passes = k_core(engine, coded, k)
    core_log = engine.materialize(core)
    steps.append(_count(f"{k}-core", core_log))
    return Cleaned(*number(engine, core_log, users, catalogue, actions), steps, passes)


def encode(events: Table, users: Table, items: Table) -> Table:
    """Events with the source rows of user and item in place of raw ids."""
    for column, table in (("user", users), ("item", items)):
        codes = table.select(__raw_id="raw_id", __code="source_row")
        events = events.join(codes, events[column] == codes["__raw_id"]).drop(column, "__raw_id")
        events = events.rename({column: "__code"})
    return events


def earliest(events: Table) -> Table:
    """Of each (user, item) the first event, by time and then by place in the source."""
    nth = ibis.row_number().over(group_by=["user", "item"], order_by=["timestamp", "source_row"])
    return events.mutate(__nth=nth).filter(_["__nth"] == 0).drop("__nth")


def k_core(engine: Engine, events: Table, k: int) -> tuple[Table, int]:
    """The largest part of `events` in which every user and every item has at least `k` events, and the passes it took.

    Only the sets of surviving users and items are kept between passes: copying the events each time is what makes a
    k-core costly. It is reached when a pass removes nobody.
    """
    users, items, passes = None, None, 0
    sizes: tuple[int, ...] = ()
    while k > 1:
        users = engine.materialize(_frequent(_within(events, users, items), "user", k))
        items = engine.materialize(_frequent(_within(events, users, items), "item", k))
        passes += 1
        before, sizes = sizes, tuple(int(table.count().to_pyarrow().as_py()) for table in (users, items))
        if sizes == before:
            break
    return _within(events, users, items), passes


def _frequent(events: Table, column: str, k: int) -> Table:
    return events.group_by(column).agg(n=_.count()).filter(_.n >= k).select(column)


def _within(events: Table, users: Table | None, items: Table | None) -> Table:
    if users is not None:
        events = events.semi_join(users, "user")
    if items is not None:
        events = events.semi_join(items, "item")
    return events


def _count(name: str, events: Table) -> dict[str, Any]:
    counts = events.agg(interactions=_.count(), users=_.user.nunique(), items=_.item.nunique()).to_pyarrow().to_pylist()
    step = {"step": name, **{column: int(value) for column, value in counts[0].items()}}
    if not step["interactions"]:
        raise UserError(
            f"nothing is left of the log after the filter '{name}'",
            "every user and item must keep enough interactions, and an interaction its minimum",
            "lower ingest.k_core (0 keeps all) or ingest.minimum, or bring a larger log",
        )
    return step


def number(
    engine: Engine, core_log: Table, users: Table, catalogue: Table, actions: list[str]
) -> tuple[pa.Table, pa.Table, pa.Table]:
    """(log, users, items) with dense ids, as `Cleaned` describes them."""
    user_ids, item_ids = engine.materialize(_dense(core_log, "user")), engine.materialize(_dense(core_log, "item"))
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


def _dense(core_log: Table, column: str) -> Table:
    """`column` and `column`_id, int32 0.. in the order of `column`."""
    ids = ibis.row_number().over(order_by=column).cast("int32")
    return core_log.select(column).distinct().mutate(ids.name(f"{column}_id"))
