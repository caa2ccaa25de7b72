"""Read JSON lines in blocks, which are parsed side by side where a file is large.

What a block holds depends on its bytes alone, and chunks are cut by rows and characters whatever the blocks are. So
rows, rejects and chunks are the same for any number of cores.

Shape legend: R rows of a block (its lines that are not blank), G good ones among them.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa

from pipeline.ingest.chunks import Chunk, Reject
from pipeline.ingest.encodings import open_utf8
from pipeline.ingest.json_blocks import Parsed, blocks_of
from pipeline.ingest.json_workers import parsed_blocks
from pipeline.ingest.lines import CHUNK_CHARACTERS, CHUNK_ROWS
from pipeline.ingest.sources import RawFile


def read_json_lines(file: RawFile, reject: Reject, columns: Sequence[str]) -> Iterator[Chunk]:
    """Yield the rows of a file of JSON lines; `readers.read_chunks` documents the arguments."""
    limit = file.limits.line_bytes
    with open_utf8(file) as stream, closing(parsed_blocks(blocks_of(stream, limit), limit, columns)) as parsed:
        yield from _chunks(parsed, reject)


def _chunks(parsed: Iterator[Parsed], reject: Reject) -> Iterator[Chunk]:
    """Cut the rows of all blocks into chunks, and reject bad rows before the chunk after which they would stand."""
    waiting = _Waiting()
    first_line, first_record = 1, 0
    for block in parsed:
        bad = iter(block.bad)
        next_bad = next(bad, None)
        begin = 0
        goods = np.concatenate([[0], np.cumsum(block.good_R)])
        sizes = np.concatenate([[0], np.cumsum(block.size_R)])
        records_G = first_record + np.flatnonzero(block.good_R)
        while begin < len(block.good_R):
            # A chunk is full with the first row with which it has so many good rows or, with one at least, characters.
            rows_R = waiting.rows + goods[begin + 1 :] - goods[begin]
            size_R = waiting.size + sizes[begin + 1 :] - sizes[begin]
            full_R = (rows_R >= CHUNK_ROWS) | ((rows_R > 0) & (size_R >= CHUNK_CHARACTERS))
            full = bool(full_R.any())
            end = begin + int(full_R.argmax()) + 1 if full else len(block.good_R)
            while next_bad and next_bad[0] < end:
                _, line, reason, text = next_bad
                reject(first_line + line, reason, text)
                next_bad = next(bad, None)
            part = slice(int(goods[begin]), int(goods[end]))
            waiting.add(
                block.table[part], first_line + block.line_G[part], records_G[part], int(sizes[end] - sizes[begin])
            )
            if full:
                yield waiting.take()
            begin = end
        first_line += block.lines
        first_record += len(block.good_R)
    if waiting.rows:
        yield waiting.take()


class _Waiting:
    """The good rows of the next chunk. size: characters of these rows, and of bad ones between them."""

    def __init__(self) -> None:
        self.parts: list[tuple[pa.Table, np.ndarray, np.ndarray]] = []
        self.rows = 0
        self.size = 0

    def add(self, table: pa.Table, lines: np.ndarray, records: np.ndarray, size: int) -> None:
        if len(lines):
            self.parts.append((table, lines, records))
        self.rows += len(lines)
        self.size += size

    def take(self) -> Chunk:
        tables, lines, records = zip(*self.parts, strict=True)
        self.parts = []
        self.rows = self.size = 0
        return Chunk(pa.concat_tables(tables), np.concatenate(lines), np.concatenate(records))
