"""Filters, k-core, ids and positions against slow references in plain Python."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.ingest.clean import clean, k_core
from pipeline.ingest.engines import Engine

# (user, item, time, click)
logs = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=60
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(ibis.duckdb.connect(), tmp_path_factory.mktemp("engine"))


def table(engine: Engine, pairs: Sequence[tuple[int | str, int]]) -> ibis.Table:
    return engine.backend.create_table("pairs", pd.DataFrame(pairs, columns=["user", "item"]), overwrite=True)


def slow_k_core(given: Iterable[tuple[int, int]], k: int) -> list[tuple[int, int]]:
    """Remove one user or item with too few interactions at a time, until none is left."""
    pairs = list(given)
    while True:
        for side in (0, 1):
            counts = Counter(pair[side] for pair in pairs)
            rare = next((name for name, count in counts.items() if count < k), None)
            if rare is not None:
                pairs = [pair for pair in pairs if pair[side] != rare]
                break
        else:
            return pairs


def slow_rounds(pairs: Iterable[tuple[int, int]], k: int) -> int:
    """Rounds that remove the rare users, then the rare items, until one removes nobody and says so."""
    left = set(pairs)
    sizes: list[tuple[int, int]] = []
    while k > 1 and (len(sizes) < 2 or sizes[-1] != sizes[-2]):
        counted = Counter(user for user, _ in left)
        users = {user for user, count in counted.items() if count >= k}
        left = {pair for pair in left if pair[0] in users}
        counted = Counter(item for _, item in left)
        items = {item for item, count in counted.items() if count >= k}
        left = {pair for pair in left if pair[1] in items}
        sizes.append((len(users), len(items)))
    return len(sizes)


def slow_clean(
    log: list[tuple[int, int, int, int]], k: int, least: int, order: list[int] | None
) -> tuple[list[tuple[int, int, int]], list[int], list[int]]:
    """[(raw user, raw item, time)] sorted by user and position, raw users and raw items by id; `order` of the items."""
    rows = [(user, item, time, row) for row, (user, item, time, click) in enumerate(log) if click >= least]
    order = order or list(dict.fromkeys(item for _, item, _, _ in rows))
    first_seen = list(dict.fromkeys(user for user, _, _, _ in rows))
    best: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    for row in sorted(rows, key=lambda row: (row[2], row[3])):
        best.setdefault((row[0], row[1]), row)
    kept = set(slow_k_core(best, k))
    rows = sorted(
        (row for pair, row in best.items() if pair in kept), key=lambda row: (first_seen.index(row[0]), row[2], row[3])
    )
    users = [user for user in first_seen if user in {pair[0] for pair in kept}]
    items = [item for item in order if item in {pair[1] for pair in kept}]
    return [row[:3] for row in rows], users, items


def stage(
    folder: Path, log: list[tuple[int, int, int, int]], items: list[int] | None, *, coded: bool = False
) -> tuple[Path, Path | None]:
    """The two Parquet files that staging.py would write; coded: the log has the items' records."""
    users, things, times, clicks = zip(*log, strict=True)
    pq.write_table(
        pa.table(
            {
                "source_row": range(len(log)),
                "user": [str(u) for u in users],
                "item": [items.index(i) if coded and items else str(i) for i in things],
                "timestamp": pa.array(times, pa.int64()),
                "click": pa.array(clicks, pa.float64()),
            }
        ),
        folder / "log.parquet",
    )
    if not items:
        return folder / "log.parquet", None
    pq.write_table(
        pa.table(
            {"source_row": range(len(items)), "raw_id": [str(i) for i in items], "title": [f"title {i}" for i in items]}
        ),
        folder / "items.parquet",
    )
    return folder / "log.parquet", folder / "items.parquet"


@settings(max_examples=15)
@given(pairs=st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40), k=st.integers(0, 5))
def test_the_k_core_is_that_of_taking_away_one_at_a_time(engine: Engine, pairs: set[tuple[int, int]], k: int) -> None:
    kept, rounds = k_core(engine, table(engine, sorted(pairs)), k)
    found = kept.to_pyarrow().to_pylist()
    assert {(row["user"], row["item"]) for row in found} == set(slow_k_core(pairs, k))
    assert len(found) == len(slow_k_core(pairs, k))
    assert rounds == slow_rounds(pairs, k)


def test_a_k_core_may_need_several_passes(engine: Engine) -> None:
    # A chain: without the last user the item before it is rare, and so on. Only the square a-b x 1-2 remains.
    chain = [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3), ("c", 3), ("c", 4), ("d", 4)]
    kept, passes = k_core(engine, table(engine, chain), 2)
    assert len(kept.to_pyarrow()) == 4
    assert passes >= 3


@settings(max_examples=15)
@given(log=logs, k=st.integers(0, 3), least=st.integers(0, 1), listed=st.booleans(), coded=st.booleans())
def test_a_log_is_cleaned_as_by_hand(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    log: list[tuple[int, int, int, int]],
    k: int,
    least: int,
    listed: bool,
    coded: bool,
) -> None:
    items = [3, 1, 4, 0, 5, 2] if listed else None
    rows, users, catalogue = slow_clean(log, k, least, items)
    paths = stage(tmp_path_factory.mktemp("staged"), log, items, coded=coded)
    if not rows:
        with pytest.raises(UserError, match="nothing is left"):
            clean(engine, *paths, {"click": least}, k)
        return
    cut = paths[0].with_name("cut.parquet")
    cleaned = clean(engine, *paths, {"click": least}, k, cut=cut)
    named_users, named_items = cleaned.users.read(), cleaned.items.read()
    assert named_users["raw_id"].to_pylist() == [str(user) for user in users]
    assert named_items["raw_id"].to_pylist() == [str(item) for item in catalogue]
    assert named_users["user_id"].to_pylist() == list(range(len(users)))
    assert named_items["item_id"].to_pylist() == list(range(len(catalogue)))
    found = cleaned.log.read().to_pylist()
    assert [(users[r["user_id"]], catalogue[r["item_id"]], r["timestamp"]) for r in found] == rows
    seen: Counter[int] = Counter()
    for row in found:
        assert row["position"] == seen[row["user_id"]]
        seen[row["user_id"]] += 1
    counts = Counter(item for _, item, _, _ in log)
    left_out = [row for row in pq.read_table(cut).to_pylist() if row["kind"] == "item"]
    known = items or list(dict.fromkeys(item for _, item, _, click in log if click >= least))
    absent = [] if items else [item for item in counts if item not in known]
    assert {int(row["raw_id"]): row["rows"] for row in left_out} == {
        item: counts[item] for item in [*known, *absent] if item not in catalogue
    }
    if listed:
        assert named_items["title"].to_pylist() == [f"title {item}" for item in catalogue]
    assert cleaned.steps[-1] == {
        "step": f"{k}-core",
        "interactions": len(rows),
        "users": len(users),
        "items": len(catalogue),
    }


def test_column_types_are_those_that_artifacts_promise(engine: Engine, tmp_path: Path) -> None:
    cleaned = clean(engine, *stage(tmp_path, [(0, 0, 5, 1), (0, 1, 4, 1)], None), {}, 0)
    log = cleaned.log.read()
    assert log.schema == cleaned.log.schema
    assert log.schema.types == [pa.int32(), pa.int32(), pa.int64(), pa.int32(), pa.float64()]
    assert log.column_names == ["user_id", "item_id", "timestamp", "position", "click"]
