"""Measure how each stage grows with the log: make logs of any size, run stages on them, and draw docs/scale.md.

    python -m benchmarks.scale make /tmp/m --events 1000000 --items 100000 --width 64
    python -m benchmarks.scale measure ingest --data /tmp/m --work /tmp/m-work
    python -m benchmarks.scale measure embed --data /tmp/m --work /tmp/m-work \
        --set embed.encoder=precomputed --set embed.path=/tmp/m/vectors.parquet --set embed.match=id
    python -m benchmarks.scale measure split --data /tmp/m --work /tmp/m-work
    python -m benchmarks.scale all /tmp/all --events 100M --items 1M
    python -m benchmarks.scale page

`make` writes a folder with log/ (interactions and items.parquet) and vectors.parquet; `--format csv` or `jsonl` changes
the form of the log. `measure` runs one stage by hand, in a process of its own, on what the stages before it left in the
folder `--work`; `--checkout` names another tree, for a figure of an earlier version. A row with CPU seconds, wall
seconds, peak memory, sizes, settings, command, commit and hardware is printed, and added to `--append FILE`. `all` does
all of this for one log, stage by stage, and resumes (whole.py). `page` writes the tables and drawings of docs/scale.md
from docs/results/scale.jsonl.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import yaml

from benchmarks.scale.logs import FORMATS, VECTORS, Sizes, make
from benchmarks.scale.measure import ROOT, measure
from benchmarks.scale.whole import number, run_all

ROWS = ROOT / "docs/results/scale.jsonl"


def main() -> None:
    """Parse the arguments, and do what they say."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    making = commands.add_parser("make", help="write a log, its item file and item vectors")
    making.add_argument("folder", type=Path)
    making.add_argument("--events", type=int, required=True, help="rows of the log, about")
    making.add_argument("--items", type=int, default=0, help="items of the catalogue (default: a tenth of the events)")
    making.add_argument("--width", type=int, default=64, help="width of the item vectors; 0: none (default 64)")
    making.add_argument("--format", choices=FORMATS, default="parquet", help="of the log (default parquet)")
    making.add_argument("--vectors", choices=VECTORS, default="parquet", help="their file (default parquet, by raw id)")
    making.add_argument("--no-items", action="store_true", help="write no item file")
    making.add_argument("--seed", type=int, default=0)

    measuring = commands.add_parser("measure", help="run one stage in a process of its own, and print its cost")
    measuring.add_argument("stage", help="name of a stage of dvc.yaml, such as ingest")
    measuring.add_argument("--data", type=Path, required=True, help="the folder that `make` wrote")
    measuring.add_argument("--work", type=Path, required=True, help="the project's folder; stages leave data/ there")
    measuring.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of params.yaml, such as ingest.k_core=0"
    )
    measuring.add_argument("--label", default="after", help="before or after a change, for the page (default after)")
    measuring.add_argument("--checkout", type=Path, default=ROOT, help="the tree that is measured (default: this one)")
    measuring.add_argument("--append", type=Path, help=f"add the row to this file, such as {ROWS.relative_to(ROOT)}")

    whole = commands.add_parser("all", help="make a log and run all stages on it; go on where an earlier run ended")
    whole.add_argument("folder", type=Path)
    whole.add_argument("--events", type=number, required=True, help="rows of the log, about, such as 100M")
    whole.add_argument("--items", type=number, default=0, help="items (default: a tenth of the events)")
    whole.add_argument("--width", type=int, default=128, help="width of the item vectors (default 128)")
    whole.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of params.yaml")

    commands.add_parser("page", help=f"write the tables and drawings of docs/scale.md from {ROWS.relative_to(ROOT)}")

    options = parser.parse_args()
    if options.command == "page":
        from benchmarks.scale.page import read_rows, write_page

        write_page(read_rows(ROWS))
        return
    if options.command == "make":
        sizes = Sizes(
            events=options.events,
            items=options.items or max(options.events // 10, 10),
            width=options.width,
            format=options.format,
            vectors=options.vectors,
            listed=not options.no_items,
            seed=options.seed,
        )
        make(options.folder, sizes)
        return
    pairs = [text.partition("=") for text in options.set]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        parser.error(f"--set needs KEY=VALUE, not {wrong[0]}")
    settings = {key: yaml.safe_load(value) for key, _, value in pairs}
    if options.command == "all":
        items = options.items or max(options.events // 10, 10)
        run_all(options.folder, Sizes(events=options.events, items=items, width=options.width), settings)
        return
    row = {"label": options.label, **measure(options.stage, options.data, options.work, options.checkout, settings)}
    row["command"] = f"python -m benchmarks.scale {shlex.join(sys.argv[1:])}"
    print(json.dumps(row))
    if options.append:
        options.append.parent.mkdir(parents=True, exist_ok=True)
        with options.append.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
