"""The index of listed ids against a dictionary of Python."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ingest import id_index
from pipeline.ingest.id_index import IdIndex, hash_texts

texts = st.text(st.sampled_from("ab0\0é中"), max_size=5)


@settings(max_examples=60)
@given(
    listed=st.lists(texts, max_size=30, unique=True),
    asked=st.lists(st.none() | texts, max_size=40),
    cut=st.integers(0, 5),
)
def test_an_id_is_found_as_a_dictionary_finds_it(listed: list[str], asked: list[str | None], cut: int) -> None:
    rows = {text: row for row, text in enumerate(listed)}
    index = IdIndex(pa.array(listed, pa.string()))
    for kind in (pa.string(), pa.large_string()):
        ids = pa.array(asked, kind).slice(cut)
        assert index.find(ids).tolist() == [rows.get(text, -1) if text is not None else -1 for text in asked[cut:]]
        assert index.has(ids).to_pylist() == [text in rows for text in asked[cut:]]


def test_many_ids_in_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_index, "BLOCK_ROWS", 1000)
    rng = np.random.default_rng(1)
    numbers = rng.permutation(100_000)
    index = IdIndex(pa.array([f"item {n}" for n in numbers[:50_000]]))
    asked = rng.integers(0, 100_000, 20_000)
    row_of = {int(n): row for row, n in enumerate(numbers[:50_000])}
    assert index.find(pa.array([f"item {n}" for n in asked])).tolist() == [row_of.get(int(n), -1) for n in asked]


def test_texts_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text has the hash of its length, so that all of them share two hashes."""

    def lengths(array: pa.Array) -> np.ndarray:
        return np.array([len(text or "") << 60 for text in array.to_pylist()], np.uint64)

    monkeypatch.setattr(id_index, "hash_texts", lengths)
    index = IdIndex(pa.array(["aa", "bb", "c"]))
    assert index.find(pa.array(["bb", "c", "dd", "aa", None, "e"])).tolist() == [1, 2, -1, 0, -1, -1]


def test_hashes_of_similar_ids_differ() -> None:
    ids = [f"{letter}{number}" for letter in "ui" for number in range(50_000)] + ["", "\0", "\0\0", "ab", "ba"]
    assert len(set(hash_texts(pa.array(ids)).tolist())) == len(ids)
