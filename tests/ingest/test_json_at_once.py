"""JSON lines that are parsed many at once give what parsing each line by itself gives, whatever the lines hold."""

import itertools
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.ingest import json_blocks, json_lines, json_workers, lines
from pipeline.ingest.recipes import Format
from pipeline.ingest.sources import Limits, RawFile

COLUMNS = ["user", "item", "n"]
GOOD = ['{"user": "u1", "item": "i%d", "n": 1.50}', '  {"user":"u", "item": "", "n": 12345678901234567890}\t']
STRANGE = [  # each of them takes another way than a row of plain texts and numbers
    '{"user": "ü", "item": "\\u00e9", "n": null}',
    '{"user": "\\ud83d\\ude00", "item": "\\ud800", "n": true}',
    '{"user": ["a", ["b", "c"]], "item": {"x": 1}, "n": NaN}',
    '{"user": "twice", "user": "again", "other": 1}',
    "{}",
]
BROKEN = [
    '{"user": "a"},{"user": "b"}',  # two values on a line, and below one value on two lines
    '{"user": [1',
    "2]}",
    '"text"',
    "[1, 2]",
    "7",
    '{"user": "a"',
    '"user": "a"}',
    '{"user": "a"}]',
    '[{"user": "a"}',
    "{'user': 1}",
    "[" * 3000,
    '{"user": "' + "x" * 500 + '"}',  # longer than the limit on a line
    "nonsense",
]


def read(path: Path, *, at_once: bool) -> tuple[list[Any], list[tuple[int, str, str]]]:
    file = RawFile(path=path, name=path.name, format=Format("jsonl"), limits=Limits(400, 10**9))
    found: list[tuple[int, str, str]] = []

    def reject(line: int, reason: str, row: str) -> None:
        found.append((line, reason, row))

    alone = lines._line_rows(file, lines._text_lines(file), COLUMNS)
    together = json_lines.read_json_lines(file, reject, COLUMNS)
    chunks = together if at_once else lines._chunks(file, alone, reject, COLUMNS)
    told = [(c.table.to_pydict(), c.table.schema, c.lines.tolist(), c.records.tolist(), len(found)) for c in chunks]
    return told, found


@pytest.mark.parametrize("broken", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("strange", [0.0, 0.1])
def test_lines_parsed_at_once_equal_lines_parsed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: float, strange: float
) -> None:
    rng = np.random.default_rng([int(100 * broken), int(100 * strange)])
    for module in (lines, json_lines):
        monkeypatch.setattr(module, "CHUNK_ROWS", 7)
    for turn, characters in itertools.product(range(20), (150, 10**6)):
        for module in (lines, json_lines):
            monkeypatch.setattr(module, "CHUNK_CHARACTERS", characters)
        monkeypatch.setattr(json_blocks, "BLOCK_BYTES", int(rng.choice([1, 50, 500, 1 << 20])))
        rows = []
        for number in range(int(rng.integers(1, 90))):
            share = rng.random()
            if share < broken:
                first = int(rng.integers(len(BROKEN)))
                rows += BROKEN[first : first + int(rng.integers(1, 4))]
            elif share < broken + strange:
                rows.append(STRANGE[rng.integers(len(STRANGE))])
            else:
                rows.append(GOOD[rng.integers(2)].replace("%d", str(number)))
            if rng.random() < 0.1:
                rows.append("  ")
        path = tmp_path / f"{turn}.jsonl"
        path.write_text("\ufeff" + "\r\n".join(rows))
        assert read(path, at_once=True) == read(path, at_once=False)


def write(path: Path, rows: int, broken: float) -> None:
    rng = np.random.default_rng(rows)
    choice = [GOOD, STRANGE, BROKEN]
    kinds = rng.choice(3, rows, p=[0.95 - broken, 0.05, broken])
    texts = [choice[kind][rng.integers(len(choice[kind]))].replace("%d", str(row)) for row, kind in enumerate(kinds)]
    path.write_text("\n".join(texts))


@pytest.mark.parametrize("cores", [1, 2, pytest.param(5, marks=pytest.mark.long)])
def test_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    """The first block is parsed here, the others by processes, of which one is killed after its first block."""
    write(tmp_path / "log.jsonl", 400, 0.02)
    expected = read(tmp_path / "log.jsonl", at_once=False)
    monkeypatch.setattr(json_blocks, "BLOCK_BYTES", 500)
    monkeypatch.setattr(json_workers, "PARALLEL_BYTES", 500)
    monkeypatch.setattr(json_workers, "cores", lambda: cores)
    started: list[json_workers._Worker] = []
    parse = json_workers._Worker.parse

    def watched(worker: json_workers._Worker, *arguments: Any) -> Any:
        found = parse(worker, *arguments)
        if not started and worker.process:
            worker.process.kill()
        started.append(worker)
        return found

    monkeypatch.setattr(json_workers._Worker, "parse", watched)
    assert read(tmp_path / "log.jsonl", at_once=True) == expected
    assert len(set(map(id, started))) == (0 if cores == 1 else cores)
    assert not any(worker.process for worker in started)


def test_processes_end_with_the_reader_and_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "log.jsonl", 300, 0.0)
    expected = read(tmp_path / "log.jsonl", at_once=False)
    monkeypatch.setattr(json_blocks, "BLOCK_BYTES", 500)
    monkeypatch.setattr(json_workers, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(json_workers, "cores", lambda: 2)
    monkeypatch.setattr(json_lines, "CHUNK_ROWS", 20)
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def watched(*arguments: Any, **named: Any) -> Any:
        processes.append(start(*arguments, **named))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)
    file = RawFile(path=tmp_path / "log.jsonl", name="log", format=Format("jsonl"))
    chunks = json_lines.read_json_lines(file, lambda *row: None, COLUMNS)  # noqa: ARG005
    next(chunks)
    assert len(processes) == 2
    del chunks  # nobody reads on
    assert [process.poll() is not None for process in processes] == [True, True]

    def refused(*arguments: Any, **named: Any) -> Any:  # noqa: ARG001
        raise OSError("no more processes")

    monkeypatch.undo()
    monkeypatch.setattr(json_workers, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(json_workers, "cores", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", refused)
    assert read(tmp_path / "log.jsonl", at_once=True) == expected


def test_plain_rows_are_not_parsed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(GOOD[0].replace("%d", str(number)) + "\n" for number in range(50)))
    monkeypatch.setattr(json_blocks, "parse_json", None)
    monkeypatch.setattr(json_lines, "CHUNK_ROWS", 20)
    told, found = read(path, at_once=True)
    assert [len(lines) for _, _, lines, _, _ in told] == [20, 20, 10]
    assert told[0][0]["n"][0] == "1.50"
    assert not found
