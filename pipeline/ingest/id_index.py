"""Look up many texts, chunk after chunk, among the items that an item file lists.

Arrow's `is_in` and `index_in` hash all listed items anew at each call, so that a log in chunks costs its rows times the
items. Here the items are hashed once, and a chunk costs its own rows alone.

Shape legend: I listed items, R rows of a chunk, B bytes of all texts of a chunk.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BLOCK_ROWS = 100_000  # listed items that are hashed at once
BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))


class IdIndex:
    """The rows of listed ids, by hash.

    Args:
        ids: string [I]. Of an id that is listed twice, one of its rows is found.
    """

    def __init__(self, ids: pa.Array):
        self.ids = ids.cast(pa.large_string())
        blocks = [hash_texts(self.ids.slice(row, BLOCK_ROWS)) for row in range(0, len(ids), BLOCK_ROWS)]
        hashes_I = np.concatenate(blocks) if blocks else np.zeros(0, np.uint64)
        # A bucket holds the ids whose hashes begin with the same bits: about one. Buckets stand end to end.
        self.shift = np.uint64(64 - max(len(ids), 2).bit_length())
        self.rows = np.argsort(hashes_I, kind="stable")
        self.hashes = hashes_I[self.rows]
        buckets = int(np.uint64(2**64 - 1) >> self.shift) + 1
        self.starts = np.searchsorted(self.hashes >> self.shift, np.arange(buckets + 1, dtype=np.uint64))

    def find(self, ids: pa.Array) -> np.ndarray:
        """Return the row of each id among those listed, int64 [R], -1 for an id that is not listed and for null."""
        hashes_R = hash_texts(ids)
        bucket_R = (hashes_R >> self.shift).astype(np.int64)
        at_R = self.starts[bucket_R]
        ends_R = self.starts[bucket_R + 1]
        found_R = np.full(len(ids), -1, np.int64)
        open_R = np.flatnonzero(at_R < ends_R)  # rows whose bucket is not read to its end
        while len(open_R):
            right = self.hashes[at_R[open_R]] == hashes_R[open_R]
            found_R[open_R[right]] = self.rows[at_R[open_R[right]]]
            open_R = open_R[~right]
            at_R[open_R] += 1
            open_R = open_R[at_R[open_R] < ends_R[open_R]]
        return self._confirmed(ids, found_R)

    def repeated(self) -> set[str]:
        """Return the ids that are listed more than once."""
        # Hashes 3 5 5 8: the ids of the second and the third are compared, because two ids may have one hash.
        again = self.hashes[1:] == self.hashes[:-1]
        suspects = self.rows[np.append(again, False) | np.append(False, again)] if len(self.rows) else self.rows
        counts = pc.value_counts(self.ids.take(pa.array(suspects)).drop_null())
        return {entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1}

    def _confirmed(self, ids: pa.Array, found_R: np.ndarray) -> np.ndarray:
        """Compare the texts themselves, because two texts may have one hash."""
        candidates = self.ids.take(pa.array(found_R, mask=found_R < 0))
        same = pc.fill_null(pc.equal(candidates, ids.cast(pa.large_string())), False).to_numpy(zero_copy_only=False)
        other_R = np.flatnonzero(~same & (found_R >= 0))
        if len(other_R):
            rows = pc.index_in(ids.take(pa.array(other_R)).cast(pa.large_string()), value_set=self.ids)
            found_R[other_R] = pc.fill_null(rows, -1).to_numpy()
        return found_R

    def has(self, ids: pa.Array) -> pa.Array:
        """Tell which ids are listed, bool [R]."""
        return pa.array(self.find(ids) >= 0)


def hash_texts(texts: pa.Array) -> np.ndarray:
    """Return a uint64 hash of each text, [R]; that of null is that of the empty text.

    A text of bytes b_0 b_1 ... has the polynomial sum (b_j + 1) BASE^j modulo 2^64, which is then mixed. The polynomial
    is a difference of two running sums over the bytes of all texts, divided by the power of its first byte.
    """
    wide = pa.types.is_large_string(texts.type)
    _, offsets, data = texts.buffers()
    ends_R = np.frombuffer(offsets, np.int64 if wide else np.int32, len(texts) + 1, texts.offset * (8 if wide else 4))
    first = int(ends_R[0])
    size = int(ends_R[-1]) - first
    bytes_B = np.frombuffer(data, np.uint8, size, first) if size else np.zeros(0, np.uint8)
    powers, inverses = _powers(size + 1)
    sums = np.zeros(size + 1, np.uint64)
    np.cumsum((bytes_B.astype(np.uint64) + np.uint64(1)) * powers[:size], out=sums[1:])
    starts_R = ends_R[:-1] - first
    hashes_R = (sums[ends_R[1:] - first] - sums[starts_R]) * inverses[starts_R]
    hashes_R = (hashes_R ^ (hashes_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes_R = (hashes_R ^ (hashes_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = hashes_R ^ (hashes_R >> np.uint64(31))
    return mixed


_table: list[np.ndarray] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` powers of BASE and of its inverse."""
    if len(_table[0]) < count:
        size = 2 * count
        for number, base in enumerate((BASE, INVERSE)):
            factors = np.full(size, base, np.uint64)
            factors[0] = 1
            _table[number] = np.cumprod(factors)
    return _table[0][:count], _table[1][:count]
