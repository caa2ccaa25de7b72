"""Files written in blocks: the bytes do not depend on the blocks, and are those of the library that writes at once."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save

from pipeline import large_files
from pipeline.artifacts import Embeddings, write_parquet, write_tensors
from pipeline.errors import UserError
from pipeline.large_files import map_arrays, map_matrix, write_arrays, write_matrix, write_rows


def rows(count: int, seed: int = 0) -> pa.Table:
    """Numbers that fill pages, texts of any length, few different texts, nulls."""
    rng = np.random.default_rng(seed)
    texts = pa.array([f"text {number}" for number in rng.integers(0, 1 << 40, 5000)])
    return pa.table(
        {
            "sorted": np.sort(rng.integers(0, count // 14 + 1, count)).astype(np.int32),
            "time": rng.integers(0, 1 << 40, count),
            "text": texts.take(pa.array(rng.integers(0, 5000, count))),
            "few": texts.take(pa.array(rng.integers(0, 5, count), mask=rng.random(count) < 0.1)),
            "value": pa.array(rng.random(count), mask=rng.random(count) < 0.5),
        }
    )


def divided(table: pa.Table, lengths: list[int]) -> list[pa.Table]:
    ends = np.cumsum(lengths)
    return [table.slice(end - length, length) for end, length in zip(ends, lengths, strict=True)]


def test_bytes_do_not_depend_on_chunks_above_one_piece(tmp_path: Path) -> None:
    """DuckDB gives chunks of some 122,880 rows, Spark gives one."""
    table = rows(300_000)
    chunks = divided(table, [122_880, 122_880, 54_240])
    odd = divided(table, [1, 131_073, 100_000, 0, 68_926])
    write_parquet(tmp_path / "one", table.combine_chunks())
    write_parquet(tmp_path / "chunks", pa.concat_tables(chunks))
    write_rows(tmp_path / "odd", table.schema, odd)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "chunks").read_bytes() == (tmp_path / "odd").read_bytes()
    assert pq.read_table(tmp_path / "odd") == table


def test_bytes_are_those_of_arrow_for_a_table_in_one_chunk(tmp_path: Path) -> None:
    """Files of earlier versions stay equal."""
    for count in (0, 1, 1023, 140_000):
        table = rows(count).combine_chunks()
        at_once = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(None), at_once, compression="zstd", row_group_size=1_000_000)
        write_parquet(tmp_path / "blocks", table)
        assert (tmp_path / "blocks").read_bytes() == at_once.getvalue(), count


def test_row_groups_have_a_fixed_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "GROUP_ROWS", 1000)
    table = rows(2500)
    for lengths in ([2500], [700, 700, 700, 400], [1000, 1000, 500], [2400, 100]):
        assert write_rows(tmp_path / "a", table.schema, divided(table, lengths), {"k": "v"}) == 2500
        footer = pq.read_metadata(tmp_path / "a")
        assert [footer.row_group(group).num_rows for group in range(3)] == [1000, 1000, 500]
        assert footer.metadata[b"k"] == b"v"
        assert pq.read_table(tmp_path / "a").replace_schema_metadata(None) == table


def test_an_error_between_two_blocks_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"before")

    def blocks() -> Iterator[pa.Table]:
        raise UserError("what", "why", "fix")
        yield rows(10)

    with pytest.raises(UserError, match="what"):
        write_rows(path, rows(1).schema, blocks())
    with pytest.raises(ValueError, match="missing"):
        write_matrix(path, "vectors", (3, 2), [np.zeros((2, 2), np.float32)])
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(7, 5), (1, 1), (300, 3), (4, 0), (0, 3)])
def test_a_matrix_in_blocks_has_the_bytes_of_safetensors(tmp_path: Path, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    blocks = [matrix[: shape[0] // 3], matrix[shape[0] // 3 :]]
    write_matrix(tmp_path / "m", "vectors", shape, blocks)
    assert (tmp_path / "m").read_bytes() == save({"vectors": matrix})
    np.testing.assert_array_equal(load_file(tmp_path / "m")["vectors"], matrix)
    mapped = map_matrix(tmp_path / "m", "vectors")
    assert mapped is not None
    np.testing.assert_array_equal(mapped, matrix)
    assert mapped.dtype == np.float32
    assert not mapped.flags.writeable or not mapped.size


def test_a_mapped_tensor_may_stand_among_others(tmp_path: Path) -> None:
    tensors: dict[str, np.ndarray] = {
        "a": np.arange(5),
        "vectors": np.ones((2, 3), np.float32),
        "z": np.zeros(3, np.int8),
    }
    write_tensors(tmp_path / "m", tensors, {"note": "text"})
    np.testing.assert_array_equal(map_matrix(tmp_path / "m", "vectors"), tensors["vectors"])
    assert map_matrix(tmp_path / "m", "absent") is None
    with pytest.raises(TypeError, match="I64"):
        map_matrix(tmp_path / "m", "a")


def test_arrays_have_the_bytes_of_safetensors_and_are_mapped(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays: dict[str, np.ndarray] = {
        "b": rng.integers(0, 9, 7),
        "a": rng.random((3, 5))[:, ::2],
        "ä": rng.random(3),
        "c": rng.integers(0, 9, 5).astype(np.int32),
        "d": rng.random((2, 3)).astype(np.float32),
        "none": np.zeros((0, 4)),
    }
    write_arrays(tmp_path / "m", arrays)
    assert (tmp_path / "m").read_bytes() == save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    mapped = map_arrays(tmp_path / "m")
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(mapped[name], array)
        assert mapped[name].dtype == array.dtype
        assert not mapped[name].size or isinstance(mapped[name], np.memmap)
    write_tensors(tmp_path / "m", {"z": np.zeros(3, np.int8)}, {"note": "text"})
    with pytest.raises(TypeError, match="I8"):
        map_arrays(tmp_path / "m")
    (tmp_path / "m").write_bytes((tmp_path / "m").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"."):
        map_arrays(tmp_path / "m")


def test_embeddings_are_mapped_or_refused(tmp_path: Path) -> None:
    vectors = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)
    Embeddings(vectors, {"encoder": "tfidf"}).write(tmp_path)
    mapped = Embeddings.read(tmp_path, mmap=True)
    np.testing.assert_array_equal(mapped.vectors_Id, vectors)
    assert mapped.encoder == Embeddings.read(tmp_path).encoder
    (tmp_path / "manifest.json").unlink()
    whole = (tmp_path / "embeddings.safetensors").read_bytes()
    for damaged in (whole[:-4], whole[:20], b"", b"\xff" * 100):
        (tmp_path / "embeddings.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            Embeddings.read(tmp_path, mmap=True)
    write_tensors(tmp_path / "embeddings.safetensors", {"other": vectors})
    with pytest.raises(UserError, match="no tensor 'vectors'"):
        Embeddings.read(tmp_path, mmap=True)
