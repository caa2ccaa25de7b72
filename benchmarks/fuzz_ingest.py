"""Fuzz the reading of logs and item files: no row may be lost without a word, and no error may be a traceback.

    python benchmarks/fuzz_ingest.py --files 500 --seed 1
    python benchmarks/fuzz_ingest.py --files 10000 --seed 1 --out fuzz.json   # goes on where an interrupted run stopped

Each file is a good log or item file of a random format that then suffers up to four mutations. Ingest's first half
reads it in this process. The rows of the file are also counted here, by Python's csv and json and by the number of
lines. Where ingest reads the file, these must hold: rows read = rows counted, and good rows + rows listed as rejects =
rows read. Where it refuses the file, the error must be a UserError. A file that cannot be counted by other means
(broken brackets of a JSON array, a damaged Parquet file) is checked for the second equation alone; the counts say how
many.
"""

import argparse
import bz2
import contextlib
import csv
import gzip
import io
import json
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from defaults import default_params

import pipeline.ingest.stage as stage
from pipeline.errors import UserError

START = 1_400_000_000
SAVE_EVERY = 100  # files
LONGEST = 30  # seconds that a file may take
ODD = [
    *("", " ", "nan", "null", "\\N", "None", "1e400", "-5", "0", "1,204", "1_0", "½", "0x1F", "inf", "-", "i1 ", "\t"),
    *(
        "12345678901234567890123",
        "1.5e9",
        "1400000000.123456789",
        "2014-05-13",
        "NaN",
        "é",
        "\u202e",
        "\U0001f600",
        "\\ud83d",
    ),
    *("'", '"', '""', "\\", "\\u0000", "{", "[", "]", "}", ":", "::", ";", "|", "=cmd()", "#", "\x00", "\x1b[31m"),
]
DELIMITERS = {"csv": ",", "semicolons": ";", "pipes": "|", "tsv": "\t", "colons": "::", "recbole": "\t"}
TEXTS = [*DELIMITERS, "jsonl", "array", "array_lines", "array_pretty", "literals"]
FORMATS = [*TEXTS, "parquet"]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
ENCODINGS = ["utf-8"] * 8 + ["utf-8-sig", "utf-16"]

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file to read: its format, whether it is the item file, and its bytes, plain and as they are on disk."""

    form: str
    items: bool
    name: str
    plain: bytes
    encoding: str
    packed: bytes


# ------------------------------------------------------------------------------------------------ make a file


def make_records(rng: random.Random, items: bool) -> list[Record]:
    if items:
        return [{"item": f"i{n}", "title": f"Title {n}, é", "brand": "B"} for n in range(rng.randint(1, 40))]
    return [
        {"user": f"u{rng.randrange(9)}", "item": f"i{rng.randrange(9)}", "timestamp": START + n, "rating": n % 5}
        for n in range(rng.randint(1, 40))
    ]


def mutate_records(rng: random.Random, records: list[Record]) -> None:
    for _ in range(rng.randint(0, 2)):
        record = rng.choice(records)
        name = rng.choice(list(record))
        record[name] = rng.choice(
            [
                rng.choice(ODD),
                rng.choice(ODD),
                None,
                True,
                7.0,
                "x" * rng.choice([1000, 100_000]),
                "a\nb\r\nc\n",
                [["a"]],
            ]
        )
        if rng.random() < 0.1:
            del record[name]


def write_text(form: str, records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record)) or ["user"]
    if form == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records)
    if form == "literals":
        return "".join(f"{record}\n" for record in records)
    if form.startswith("array"):
        if form == "array_lines":
            return "[\n" + ",\n".join(json.dumps(record) for record in records) + "\n]\n"
        return json.dumps(records, indent=2 if form == "array_pretty" else None)
    delimiter = DELIMITERS[form]
    rows = [["" if record.get(name) is None else str(record[name]) for name in names] for record in records]
    if form == "recbole":
        names = [f"{name}:token" for name in names]
    if len(delimiter) > 1 or form == "recbole":
        return "".join(delimiter.join(row).replace("\n", " ") + "\n" for row in [names, *rows])
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows([names, *rows])
    return buffer.getvalue()


def mutate_text(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    first = 0 if len(lines) < 3 or rng.random() < 0.05 else 1  # a header line mostly stays
    at = rng.randrange(first, len(lines)) if len(lines) > first else 0
    line = lines[at]
    spot = rng.randint(0, len(line))
    change = rng.choice(["insert", "quote", "delete", "twice", "blank", "width", "swap", "cut", "control", "join"])
    if change == "insert":
        line = line[:spot] + rng.choice(ODD) + line[spot:]
    elif change == "quote":
        line = line[:spot] + '"' + line[spot:]
    elif change == "control":
        line = line[:spot] + chr(rng.choice([0, 1, 8, 11, 12, 13, 27, 0x85, 0x2028, 0xFEFF])) + line[spot:]
    elif change == "width":
        line = re.sub(r"[,;|\t]", lambda match: match[0] * rng.randint(0, 2), line, count=1)
    elif change == "swap":
        parts = re.split(r"([,;|\t])", line)
        fields = parts[::2]
        rng.shuffle(fields)
        parts[::2] = fields
        line = "".join(parts)
    elif change == "cut":
        return text[: rng.randint(0, len(text))]
    lines[at] = line
    if change == "delete":
        del lines[at]
    elif change in ("twice", "blank"):
        lines.insert(at, line if change == "twice" else rng.choice(["", " ", "\t", "\r"]))
    elif change == "join" and at + 1 < len(lines):
        lines[at : at + 2] = [line + lines[at + 1]]
    return "\n".join(lines)


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def make_case(seed: int, number: int) -> Case:
    """Make file `number` of a seed; the same two numbers give the same file."""
    rng = random.Random(f"{seed}:{number}")
    form = FORMATS[number % len(FORMATS)]
    items = rng.random() < 0.3
    records = make_records(rng, items)
    mutate_records(rng, records)
    encoding = "utf-8"
    if form == "parquet":
        names = list(records[0]) or ["user"]
        table = {name: [None if r.get(name) is None else str(r.get(name)) for r in records] for name in names}
        buffer = io.BytesIO()
        pq.write_table(pa.table(table), buffer)
        plain = buffer.getvalue()
        if rng.random() < 0.5:
            plain = flip_bits(rng, plain) if rng.random() < 0.8 else plain[: rng.randrange(len(plain))]
    else:
        text = write_text(form, records)
        for _ in range(rng.randint(0, 2)):
            text = mutate_text(rng, text)
        encoding = rng.choice(ENCODINGS)
        plain = text.encode(encoding, "replace")
        if rng.random() < 0.15:
            plain = flip_bits(rng, plain)
    packer = rng.choice([*[""] * 6, ".gz", ".bz2"])
    packed = PACKERS[packer](plain)
    if packer and rng.random() < 0.1:
        packed = flip_bits(rng, packed) if rng.random() < 0.5 else packed[: rng.randrange(len(packed))]
    usual = {"jsonl": "jsonl", "parquet": "parquet", "recbole": "item" if items else "inter"}.get(form, "csv")
    suffix = "json" if form.startswith(("array", "literals")) else usual
    return Case(form=form, items=items, name=f"{suffix}{packer}", plain=plain, encoding=encoding, packed=packed)


# ------------------------------------------------------------------------------------------------ count its rows


def count_rows(case: Case, listed: Sequence[int]) -> int | None:
    """Count the rows of the plain content; None where nothing but the reader itself can tell.

    Args:
        listed: lines that ingest lists as rejects: of a CSV row over several lines, each line is one.
    """
    if case.form == "parquet":
        with contextlib.suppress(Exception):
            return int(pq.ParquetFile(io.BytesIO(case.plain)).metadata.num_rows)
        return None
    text = case.plain.decode(case.encoding).removeprefix("\ufeff")
    if case.form.startswith("array"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            return len(value) if isinstance(value, list) else None
        return None
    if case.form in ("jsonl", "literals"):
        return sum(bool(line.strip("\ufeff \t\r")) for line in text.split("\n"))
    if case.form == "colons":
        return sum(bool(line.strip("\ufeff \t\r")) for line in text.split("\n")) - 1
    return _count_delimited(text, DELIMITERS[case.form], quoted=case.form != "recbole", listed=listed)


def _count_delimited(text: str, delimiter: str, *, quoted: bool, listed: Sequence[int]) -> int | None:
    lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", text)
    quoting: Any = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting)
    bad = Counter(listed)
    header = rows = 0
    width = 0  # of the header line
    line = 1
    for record in reader:
        breaks = sum(field.count("\n") for field in record)
        if not header:
            header = int(bool("".join(record).strip()))
            width = len(record)
        elif any(record) or len(record) not in (0, width):
            rows += sum(bad[line + n] for n in range(breaks + 1)) if bad[line] else 1
        line += 1 + breaks
    return rows


# ------------------------------------------------------------------------------------------------ read and compare


def read_case(case: Case, folder: Path) -> tuple[str, str]:
    """Let ingest read a file; return the outcome (read, uncounted, refused, MISCOUNTED or TRACEBACK) and a detail."""
    for old in folder.iterdir():
        old.unlink()
    work = folder.parent / "work"
    work.mkdir(exist_ok=True)
    name = f"{'items' if case.items else 'interactions'}.{case.name}"
    (folder / name).write_bytes(case.packed)
    if case.items:
        log = "user,item,timestamp\n" + "".join(f"u{n % 3},i{n % 9},{START + n}\n" for n in range(20))
        (folder / "interactions.csv").write_text(log, encoding="utf-8")
    params = default_params()
    params = replace(params, dataset="custom", ingest=replace(params.ingest, path=str(folder), max_reject_rate=1.0))
    try:
        with contextlib.redirect_stderr(io.StringIO()) as noise, warnings.catch_warnings():
            warnings.simplefilter("error", ResourceWarning)
            signal.alarm(LONGEST)
            source = stage._find(params, work)
            staged = stage._stage(params, source, work, work / "saved.parquet")
    except UserError as error:
        return "refused", error.what[:100]
    except Exception:
        return "TRACEBACK", traceback.format_exc()
    finally:
        signal.alarm(0)
    if "Exception ignored" in noise.getvalue() or "Traceback" in noise.getvalue():
        return "TRACEBACK", noise.getvalue()
    table = [row for block in staged.rejects.blocks("1GB") for row in block.to_pylist()]
    listed = [row["line"] for row in table if row["source"] == name]
    if case.items:
        assert staged.items is not None
        read = staged.items.read
        kept = pq.read_metadata(staged.items.path).num_rows + staged.items.copies
    else:
        read = staged.log.read
        kept = pq.read_metadata(staged.log.path).num_rows
    if kept + len(listed) != read:
        return "MISCOUNTED", f"{kept} kept + {len(listed)} rejects, {read} read"
    try:
        counted = count_rows(case, listed)
    except (UnicodeDecodeError, csv.Error) as error:
        return "uncounted", repr(error)
    if counted is None:
        return "uncounted", "no other means"
    return ("read", "") if counted == read else ("MISCOUNTED", f"{counted} counted, {read} read")


def run(files: int, seed: int, out: Path | None) -> dict[str, Any]:
    """Read the files that an interrupted run has left, and return the counts of all."""
    state: dict[str, Any] = {"seed": seed, "files": 0, "seconds": 0.0, "counts": {}, "failures": []}
    if out and out.is_file():
        saved = json.loads(out.read_text(encoding="utf-8"))
        state = saved if saved["seed"] == seed else state
    counts: dict[str, Counter[str]] = {form: Counter(state["counts"].get(form, {})) for form in FORMATS}
    start = time.monotonic() - state["seconds"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "raw"
        folder.mkdir()
        for number in range(state["files"], files):
            case = make_case(seed, number)
            outcome, detail = read_case(case, folder)
            counts[case.form][outcome] += 1
            if outcome.isupper():
                state["failures"].append({"number": number, "form": case.form, "outcome": outcome, "detail": detail})
            state["files"] = number + 1
            if out and (number + 1) % SAVE_EVERY == 0:
                _save(state, counts, start, out)
    _save(state, counts, start, out)
    return state


def _too_long(*_: object) -> None:
    raise TimeoutError(f"a file took longer than {LONGEST} s")


def _save(state: dict[str, Any], counts: dict[str, Counter[str]], start: float, out: Path | None) -> None:
    state["seconds"] = round(time.monotonic() - start, 1)
    state["counts"] = {form: dict(sorted(count.items())) for form, count in counts.items()}
    if out:
        out.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Print the counts by format; return 1 if a file was miscounted or ended in a traceback."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a JSON file with the counts; a later call goes on from it")
    options = parser.parse_args()
    csv.field_size_limit(1 << 30)
    signal.signal(signal.SIGALRM, _too_long)
    state = run(options.files, options.seed, options.out)
    print(f"{state['files']:,} files, seed {state['seed']}, {state['seconds']:,.0f} s")
    for form, count in state["counts"].items():
        print(f"{form:12} " + ", ".join(f"{number:,} {outcome}" for outcome, number in count.items()))
    for failure in state["failures"][:20]:
        print(failure["number"], failure["form"], failure["outcome"], failure["detail"], sep="\n", end="\n\n")
    return int(bool(state["failures"]))


if __name__ == "__main__":
    sys.exit(main())
