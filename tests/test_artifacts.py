"""The files between stages: equal content gives equal bytes, damage is named, and a failed write changes nothing."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.artifacts import (
    Embeddings,
    Sids,
    Splits,
    fingerprint,
    read_json,
    read_parquet,
    read_tensors,
    write_bytes,
    write_json,
    write_parquet,
    write_tensors,
)
from pipeline.errors import UserError


@pytest.fixture
def embeddings() -> Embeddings:
    return Embeddings(np.random.default_rng(1).normal(size=(7, 5)).astype(np.float32), {"name": "tfidf", "width": 5})


@pytest.fixture
def sids() -> Sids:
    random = np.random.default_rng(2)
    return Sids(
        random.integers(0, 4, (7, 3)).astype(np.int32),
        (4, 4, 4),
        {"level_1": random.normal(size=(4, 5)).astype(np.float32)},
        {"collisions": 2},
    )


@pytest.fixture
def splits() -> Splits:
    """Three users with 4, 1 and 3 interactions; the second has no targets, the third's last two share a time stamp."""
    return Splits(
        items_N=np.array([5, 1, 4, 2, 3, 0, 6, 5], np.int32),
        timestamps_N=np.array([1, 2, 3, 4, 9, 1, 2, 2]),
        offsets=np.array([0, 4, 5, 8]),
        train_end=np.array([2, 5, 6]),
        valid_target=np.array([2, -1, 6]),
        test_target=np.array([3, -1, 7]),
        summary={"max_history": 3, "items": 7},
    )


def test_what_is_written_reads_back_equal(tmp_path: Path, embeddings: Embeddings, sids: Sids, splits: Splits) -> None:
    for artifact in (embeddings, sids, splits):
        artifact.write(tmp_path / type(artifact).__name__)
    again = Embeddings.read(tmp_path / "Embeddings")
    np.testing.assert_array_equal(again.vectors_Id, embeddings.vectors_Id)
    assert again.encoder == embeddings.encoder
    read_sids = Sids.read(tmp_path / "Sids")
    np.testing.assert_array_equal(read_sids.codes_IL, sids.codes_IL)
    np.testing.assert_array_equal(read_sids.codebooks["level_1"], sids.codebooks["level_1"])
    assert read_sids.widths == (4, 4, 4)
    read_splits = Splits.read(tmp_path / "Splits")
    for name in Splits.ARRAYS:
        np.testing.assert_array_equal(getattr(read_splits, name), getattr(splits, name))
    assert (read_splits.users, read_splits.max_history) == (3, 3)


def test_equal_content_gives_equal_bytes(tmp_path: Path, embeddings: Embeddings, sids: Sids, splits: Splits) -> None:
    for folder in ("one", "two"):
        for artifact in (embeddings, sids, splits):
            artifact.write(tmp_path / folder / type(artifact).__name__)
    for file in (tmp_path / "one").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "two" / file.relative_to(tmp_path / "one")).read_bytes(), file


def test_targets_are_those_of_the_users_who_have_one(splits: Splits) -> None:
    users, positions = splits.targets("test")
    assert (users.tolist(), positions.tolist()) == ([0, 2], [3, 7])


def test_a_tie_is_an_equal_time_stamp_just_before_within_the_user(splits: Splits) -> None:
    """Position 5 is the first of a user, whatever the user before did."""
    assert splits.has_tie(np.array([3, 5, 6, 7])).tolist() == [False, False, False, True]


@settings(max_examples=25)
@given(
    array=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.floats(-9, 9, width=32)
    )
)
def test_tensors_read_back_in_any_memory_layout(array: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("tensors") / "t.safetensors"
    write_tensors(path, {"plain": array, "turned": array.T})
    again = read_tensors(path)
    np.testing.assert_array_equal(again["plain"], array)
    np.testing.assert_array_equal(again["turned"], array.T)


@pytest.mark.parametrize(
    ("name", "read"), [("a.json", read_json), ("a.parquet", read_parquet), ("a.safetensors", read_tensors)]
)
def test_a_missing_or_damaged_file_is_named_with_what_to_do(tmp_path: Path, name: str, read: Any) -> None:
    path = tmp_path / name
    with pytest.raises(UserError, match="is not here") as missing:
        read(path)
    assert "dvc repro" in missing.value.fix
    path.write_bytes(b"\x13\x00broken")
    with pytest.raises(UserError, match=f"{name} cannot be read") as damaged:
        read(path)
    assert "dvc checkout" in damaged.value.fix


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pd.DataFrame({"x": range(1000)}))
    write_tensors(tmp_path / "a.safetensors", {"x": np.arange(1000)})
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a\.parquet cannot be read"):
        read_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.safetensors cannot be read"):
        read_tensors(tmp_path / "a.safetensors")


def test_json_has_no_room_for_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})


@contextmanager
def small_files_only() -> Iterator[None]:
    """No file may grow past 4 kB, which fails a write as a full disk does; pytest's own log must not meet the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "ranks.bin"
    path.write_bytes(b"before")
    with small_files_only(), pytest.raises(UserError, match="could not write") as caught:
        write_bytes(path, os.urandom(10_000))
    assert "free some space" in caught.value.fix
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_fingerprint_sees_every_byte_name_and_value(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_bytes(b"1")
    first = fingerprint({"seed": 1, "rate": 0.1}, tmp_path / "data")
    assert first == fingerprint({"rate": 0.1, "seed": 1}, tmp_path / "data")
    assert first != fingerprint({"seed": 2, "rate": 0.1}, tmp_path / "data")
    (tmp_path / "data/a").write_bytes(b"2")
    changed = fingerprint({"seed": 1, "rate": 0.1}, tmp_path / "data")
    (tmp_path / "data/a").rename(tmp_path / "data/b")
    assert len({first, changed, fingerprint({"seed": 1, "rate": 0.1}, tmp_path / "data")}) == 3
