"""Second half of the stage: Ibis expressions that DuckDB and Spark both run. They filter, take the k-core and number.

Integers replace raw ids before the costly steps. A user becomes the source row of its first interaction. An item
becomes its record in the item file (where the file lists all items, the staged log has the record already) or, without
such a file, the source row of its first interaction. Dense ids number
the users and items that are left, in the order of these integers. No action of a log has a name that begins with two
underscores, so such names are free for columns of this file.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ibis import _
from ibis.expr.types import BooleanValue, Table

from pipeline.artifacts import MICROSECONDS
from pipeline.errors import UserError
from pipeline.ingest.cut import cut_ids, write_cut
from pipeline.ingest.engines import Engine, Rows

EXTREME = {"first": "earliest", "last": "latest"}  # ingest.repeats -> its word in the steps of ingest.json


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The cleaned and numbered log, in tables that the engine computes when they are read.

    log: user_id, item_id int32, timestamp int64, position int32, then the actions; sorted by (user_id, position).
    exposures: what `expose` returns; None where no column is asked for.
    time_unit: of timestamp; `s` where all times are whole seconds, else `us`. span: the first and the last timestamp.
    users: user_id, raw_id. items: item_id, raw_id, source_row (with an item file the record there), then its texts.
    steps: interactions, users and items after each filter, in the order of the filters. rounds: those of the k-core.
    """

    log: Rows
    exposures: Rows | None
    users: Rows
    items: Rows
    steps: list[dict[str, Any]]
    rounds: int
    time_unit: str
    span: tuple[int, int]


def clean(
    engine: Engine,
    log: Path,
    items: Path | None,
    minimum: Mapping[str, float],
    k: int,
    *,
    repeats: str = "first",
    cut: Path | None = None,
    exposed: Sequence[str] = (),
) -> Cleaned:
    """Filter, deduplicate, take the k-core and number what is left.

    Args:
        log: the log as staging.py writes it, a Parquet file.
        items: the item file as staging.py writes it; None if there is none.
        minimum: action column -> least value of an interaction.
        repeats: which interactions of a user with an item count: `first`, `last`, or all of them (`keep`).
        exposed: action columns of the exposures; none: no exposures.
        cut: the file that will list the users and items that are left out; None: no file.

    Raises:
        UserError: a filter leaves nothing.
    """
    staged = engine.read(log)
    actions = [name for name in staged.columns if name not in ("source_row", "user", "item", "timestamp")]
    enough = [staged[name] >= least for name, least in minimum.items()]  # {"click": 1}: not the rows whose click is 0
    rule = ", ".join(f"{name} >= {least:g}" for name, least in minimum.items())
    all_users, all_items = (_names(engine, staged, column, enough) for column in ("user", "item"))
    steps = [_step("usable rows", staged, all_users, all_items)]
    interactions = staged.filter(enough) if minimum else staged
    users, logged = (names.filter(_.source_row.notnull()) for names in (all_users, all_items))
    if minimum:
        steps.append(_step(f"minimum {rule}", interactions, users, logged))

    # Raw ids become integers: rows 0 (ann, tea), 1 (bob, jam), 2 (ann, jam) -> users ann 0, bob 1; items tea 0, jam 1.
    catalogue = engine.read(items) if items else logged.select("raw_id", "source_row")
    encoded = encode(interactions, users, catalogue)

    # Only one interaction of a user with an item remains: of (ann, tea) at 5 and at 9 the first is (ann, tea) at 5.
    coded = engine.materialize(encoded if repeats == "keep" else one_of_each(encoded, last=repeats == "last"))
    if repeats != "keep":  # which leaves every user and every item one interaction at least
        steps.append(_step(f"{EXTREME[repeats]} of each user and item", coded, users, logged))

    core, rounds = k_core(engine, coded, k)
    core_log = engine.materialize(core)
    user_ids, item_ids = (engine.materialize(_dense(core_log, column)) for column in ("user", "item"))
    steps.append(
        _core_step(engine, {"interactions": core_log, "users": user_ids, "items": item_ids}, k, steps, encoded)
    )
    if cut:
        left_out = [
            cut_ids("user", names=all_users, counted=coded, left=user_ids),
            cut_ids("item", names=all_items, counted=coded, left=item_ids, listed=catalogue if items else None),
        ]
        write_cut(cut, left_out, {"k_core": str(k), "minimum": rule})
    first, last, ticks = _times(core_log)
    named_users = user_ids.join(users, user_ids.user == users.source_row).select("user_id", "raw_id")
    named_items = item_ids.join(catalogue, item_ids.item == catalogue.source_row).drop("item")
    return Cleaned(
        log=number(engine, core_log, user_ids, item_ids, actions, ticks),
        exposures=expose(engine, encode(staged, users, catalogue), user_ids, item_ids, exposed, ticks),
        users=engine.rows(named_users.order_by("user_id")),
        items=engine.rows(named_items.relocate("item_id", "raw_id").order_by("item_id")),
        steps=steps,
        rounds=rounds,
        time_unit="us" if ticks == 1 else "s",
        span=(first // ticks, last // ticks),
    )


def _names(engine: Engine, staged: Table, column: str, enough: Sequence[BooleanValue]) -> Table:
    """Return what the log says of each user or item.

    raw_id, or code where the log has integers; rows: how many there are; first: the source row of the first one;
    source_row: of the first one that has enough (`ingest.minimum`), null where none has.
    """
    facts = {"rows": _.count(), "first": _.source_row.min()}
    if enough:
        facts["source_row"] = staged.source_row.min(where=ibis.and_(*enough))
    key = "raw_id" if staged[column].type().is_string() else "code"
    names = staged.group_by(**{key: column}).agg(**facts)
    return engine.materialize(names if enough else names.mutate(source_row="first"))


def encode(interactions: Table, users: Table, items: Table) -> Table:
    """Replace the raw ids of users and items by their source rows; a column of integers has these already."""
    # (ann, jam, time 7) with ann's first row 0 and jam's first row 1 -> (0, 1, time 7)
    for column, table in (("user", users), ("item", items)):
        if not interactions[column].type().is_string():
            continue
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

    The interactions stay as they are: only the numbers of interactions of the users and items that are left are stored
    between rounds, and a round reads off what the users and items that it removes had. The k-core is reached when a
    round removes nobody.

    Returns:
        (that part, the number of rounds)
    """
    if k <= 1:
        return interactions, 0
    users = engine.materialize(interactions.group_by("user").agg(n=_.count()))
    items = engine.materialize(interactions.group_by("item").agg(n=_.count()))
    stays, rare = _.n >= k, _.n < k
    items_left = items
    rounds = 0
    sizes: tuple[int, ...] = ()
    while True:
        # Users first, then items among what these users leave: an item that falls below k may pull down a user, who is
        # found in the next round.
        users_left = users.filter(stays)
        items = engine.materialize(_without(items_left, interactions, "item", users.filter(rare), "user"))
        items_left = items.filter(stays)
        rounds += 1

        # sizes 9 users, 7 items, then 8, 7, then 8, 7 again: the third round removed nobody
        before = sizes
        sizes = tuple(int(table.count().to_pyarrow().as_py()) for table in (users_left, items_left))
        if sizes == before:
            break
        users = engine.materialize(_without(users_left, interactions, "user", items.filter(rare), "item"))
    return interactions.semi_join(users_left, "user").semi_join(items_left, "item"), rounds


def _without(counts: Table, interactions: Table, column: str, removed: Table, other: str) -> Table:
    """Return the numbers of interactions, `n` by `column`, less those with the removed values of the other column."""
    # counts of items tea 5, jam 3; the removed user ann had tea once -> tea 4, jam 3
    lost = interactions.semi_join(removed, other).group_by(lost_of=column).agg(lost=_.count())
    joined = counts.left_join(lost, counts[column] == lost.lost_of)
    return joined.select(column, n=_.n - ibis.coalesce(_.lost, 0))


def _core_step(
    engine: Engine, left: Mapping[str, Table], k: int, steps: list[dict[str, Any]], encoded: Table
) -> dict[str, Any]:
    """Return the last step.

    Args:
        left: the interactions that are left, and tables with a row for each user and each item of them.

    Raises:
        UserError: nothing is left. It names the repeats where the k-core is empty because they do not count.
    """
    try:
        return _step(f"{k}-core", left["interactions"], left["users"], left["items"])
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


def _step(name: str, interactions: Table, users: Table, items: Table) -> dict[str, Any]:
    """Count the rows of three tables: the interactions after a filter, their users and their items.

    Raises:
        UserError: there are none.
    """
    tables = {"interactions": interactions, "users": users, "items": items}
    counts = {unit: int(table.count().to_pyarrow().as_py()) for unit, table in tables.items()}
    if not counts["interactions"]:
        raise UserError(
            f"nothing is left of the log after the filter '{name}'",
            "every user and every item needs enough interactions, and an interaction needs the values of "
            "ingest.minimum",
            "lower ingest.k_core (0 leaves out nobody) or ingest.minimum, or bring a larger log",
        )
    return {"step": name, **counts}


def number(engine: Engine, core_log: Table, user_ids: Table, item_ids: Table, actions: list[str], ticks: int) -> Rows:
    """Return the log with dense ids and positions, as `Cleaned` describes it.

    Args:
        user_ids: user and user_id, as `_dense` returns them.
        item_ids: item and item_id likewise.
        ticks: microseconds in the unit of the times that come out.
    """
    # by time within each user; equal times in the order of the source
    log = core_log.join(user_ids, "user").join(item_ids, "item")
    log = log.order_by("user_id", "timestamp", "source_row").select("user_id", "item_id", "timestamp", *actions)
    schema = log.schema().to_pyarrow().remove_metadata().insert(3, pa.field("position", pa.int32()))
    return engine.rows(log).mapped(schema, lambda blocks: _with_positions(blocks, ticks))


def expose(
    engine: Engine, encoded: Table, user_ids: Table, item_ids: Table, actions: Sequence[str], ticks: int
) -> Rows | None:
    """Return all rows of the users and items that are left, those that no filter let through included.

    user_id, item_id int32, timestamp int64, source_row int64, then the actions; sorted by (user_id, timestamp,
    source_row). None without actions.

    Args:
        encoded: the whole log, as `encode` returns it.
        user_ids: user and user_id, as `_dense` returns them.
        item_ids: item and item_id likewise.
        actions: names of columns.
        ticks: microseconds in the unit of the times that come out; times are rounded down to it.
    """
    if not actions:
        return None
    log = encoded.join(user_ids, "user").join(item_ids, "item").order_by("user_id", "timestamp", "source_row")
    log = log.select("user_id", "item_id", "timestamp", "source_row", *actions)
    schema = log.schema().to_pyarrow().remove_metadata()

    def rounded(blocks: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for block in blocks:
            times = block["timestamp"].to_numpy() // ticks  # towards the past before 1970, too
            yield block.set_column(2, schema.field("timestamp"), pa.array(times))

    return engine.rows(log).mapped(schema, rounded)


def _with_positions(blocks: Iterator[pa.Table], ticks: int) -> Iterator[pa.Table]:
    """Add position 0, 1, ... within each user to rows that are sorted by user, and divide the times by `ticks`."""
    user = -1  # of the last row so far
    start = 0  # that user's first row, counted over all blocks
    done = 0  # rows so far
    for block in blocks:
        # users 3 3 5 after a block that ended with user 3 and began it 4 rows ago -> positions 4 5 0
        users = block["user_id"].to_numpy()
        rows = np.arange(done, done + len(users))
        begins = np.diff(users, prepend=user) != 0
        starts = np.maximum.accumulate(np.where(begins, rows, start))
        block = block.add_column(3, "position", pa.array((rows - starts).astype(np.int32)))
        if ticks > 1:
            block = block.set_column(2, "timestamp", pc.divide(block["timestamp"], ticks))
        yield block
        if len(users):
            user = int(users[-1])
            start = int(starts[-1])
            done += len(users)


def _times(log: Table) -> tuple[int, int, int]:
    """Return the first and the last time in microseconds, and how many of them the unit of the output has.

    It is a second, 1,000,000 microseconds, if no time has a fraction, and else one microsecond.
    """
    found = log.agg(first=_.timestamp.min(), last=_.timestamp.max(), odd=(_.timestamp % MICROSECONDS != 0).any())
    row = found.to_pyarrow().to_pylist()[0]
    return int(row["first"]), int(row["last"]), 1 if row["odd"] else MICROSECONDS


def _dense(core_log: Table, column: str) -> Table:
    """Return `column` and `column`_id, int32 0.. in the order of `column`."""
    # source rows of users 4, 9, 30 -> user_id 0, 1, 2; of items likewise
    ids = ibis.row_number().over(order_by=column).cast("int32")
    return core_log.select(column).distinct().mutate(ids.name(f"{column}_id"))
