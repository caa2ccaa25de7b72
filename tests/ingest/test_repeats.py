"""`ingest.repeats`: which of several interactions of one user with one item count, against plain Python."""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_logs import START, Ingest, csv_text, write

from pipeline.errors import UserError

rows = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.integers(0, 3), st.integers(0, 9)), min_size=1
)


def slow(log: list[tuple[str, str, int, int]], repeats: str) -> list[tuple[str, str, int, int]]:
    """The interactions that count, by user in the order of the first row, by time, then in the order of the file."""
    by_time = sorted(enumerate(log), key=lambda entry: (entry[1][2], entry[0]))
    groups = defaultdict(list)
    for entry in by_time:
        groups[entry[1][:2]].append(entry)
    chosen = {"first": slice(0, 1), "last": slice(-1, None), "keep": slice(None)}[repeats]
    counted = {index for entries in groups.values() for index, _ in entries[chosen]}
    users = list(dict.fromkeys(row[0] for row in log))
    ordered = [row for index, row in by_time if index in counted]
    return sorted(ordered, key=lambda row: users.index(row[0]))


@pytest.mark.parametrize("repeats", ["first", "last", "keep"])
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(log=rows)
def test_the_interactions_that_count_are_those_of_the_loop(
    ingest: Ingest, tmp_path: Path, repeats: str, log: list[tuple[str, str, int, int]]
) -> None:
    path = write(tmp_path / "log.csv", csv_text([(u, i, START + t, r) for u, i, t, r in log], "user,item,time,rating"))
    result = ingest(path, repeats=repeats, k_core=0)
    ratings = result.frame("interactions").rating.tolist()
    found = [(u, i, t - START, int(r)) for (u, i, t), r in zip(result.rows, ratings, strict=True)]
    assert found == slow(log, repeats)
    positions = result.frame("interactions").groupby("user_id").position.apply(list)
    assert all(list(range(len(numbers))) == numbers for numbers in positions)


def listening(users: int = 6) -> list[tuple[Any, ...]]:
    """Every user hears three songs, twenty times in turn."""
    return [(f"u{u}", f"song{n % 3}", START + 60 * (20 * u + n)) for u in range(users) for n in range(20)]


def test_a_k_core_counts_repeats_that_are_kept(ingest: Ingest, tmp_path: Path) -> None:
    result = ingest(write(tmp_path / "log.csv", csv_text(listening())), repeats="keep")
    assert result.summary["interactions"] == 120
    assert Counter(user for user, _, _ in result.rows) == {f"u{u}": 20 for u in range(6)}
    assert [step["step"] for step in result.summary["steps"]] == ["usable rows", "5-core"]


@pytest.mark.parametrize("repeats", ["first", "last"])
def test_an_empty_k_core_names_the_repeats_where_they_are_the_cause(
    ingest: Ingest, tmp_path: Path, repeats: str
) -> None:
    path = write(tmp_path / "log.csv", csv_text(listening()))
    with pytest.raises(UserError, match="because repeats do not count") as error:
        ingest(path, repeats=repeats)
    assert "6 users have 120 interactions with 3 items; one for each user and item leaves 18" in error.value.why
    assert "ingest.repeats=keep: then 120 interactions are left of 6 users with 3 items" in error.value.fix


def test_an_empty_k_core_does_not_name_repeats_that_would_not_help(ingest: Ingest, tmp_path: Path) -> None:
    twice = [("u1", "i1", START), ("u1", "i1", START + 1), ("u2", "i2", START)]
    with pytest.raises(UserError, match="after the filter '5-core'") as error:
        ingest(write(tmp_path / "log.csv", csv_text(twice)))
    assert "repeats" not in str(error.value)
