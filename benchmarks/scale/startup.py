"""Measure what train costs until its first step: CPU seconds and memory after each part of its start.

    python -m benchmarks.scale.startup /tmp/start --users 7000000 --items 10000000

Splits and Semantic IDs (three levels of 256 codes, and the digit) are made of random numbers in the folder, once; the
settings are those of presets/demo.yaml. A line per part: CPU seconds since the start of the process, and MiB, of which
`anonymous` are not pages of mapped files.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.scale.measure import ROOT
from pipeline.artifacts import Sids, Splits, write_parquet
from pipeline.quantize.collisions import deduplication_digits


def make(folder: Path, users: int, items: int) -> None:
    """Write data/splits, data/sids and data/interactions/items.parquet."""
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(np.clip(rng.geometric(1 / 12, users) + 4, 5, 200))])
    ends = offsets[1:]
    Splits(
        items_N=rng.integers(0, items, offsets[-1], dtype=np.int32),
        timestamps_N=np.arange(offsets[-1]),
        offsets=offsets,
        train_end=ends - 2,
        valid_target=ends - 2,
        test_target=ends - 1,
        summary={"max_history": 20, "items": items},
    ).write(folder / "data/splits")
    codes_IL = rng.integers(0, 256, (items, 3), dtype=np.int32)
    digits_I, width = deduplication_digits(codes_IL, 0)
    codebooks = {f"level_{level}": rng.normal(size=(256, 8)).astype(np.float32) for level in (1, 2, 3)}
    Sids(np.column_stack([codes_IL, digits_I]), (256, 256, 256, width), codebooks, {}).write(folder / "data/sids")
    names = pa.array(np.arange(items)).cast(pa.string())
    table = pa.table({"item_id": np.arange(items, dtype=np.int32), "raw_id": names, "title": names})
    write_parquet(folder / "data/interactions/items.parquet", table)


def say_cost(part: str) -> None:
    """Print the CPU seconds and the memory of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    peak, now, anonymous = (int(status[key].split()[0]) // 1024 for key in ("VmHWM", "VmRSS", "RssAnon"))
    print(f"{part:20} {time.process_time():6.1f} s, {now:6,} MiB, {anonymous:6,} anonymous, {peak:6,} at most")


def start(folder: Path) -> None:
    """Do what `train` does until its first step."""
    import torch

    from pipeline.artifacts import fingerprint
    from pipeline.config import load_params
    from pipeline.distributed import World
    from pipeline.training.assembly import trainer_of
    from pipeline.training.checkpoint import Checkpoints
    from pipeline.training.names import read_items, read_names
    from pipeline.training.recipe import TrainingRecipe

    say_cost("imports")
    os.chdir(folder)
    params = load_params(ROOT / "presets/demo.yaml")
    splits = Splits.read(Path("data/splits"))
    fingerprint(Path("data/splits"))
    names = read_names(params.backbone, splits, Path("data/sids"), Path("data/embeddings"))
    read_items(Path("data/interactions/items.parquet"), len(names.sids.codes_IL))
    say_cost("inputs")
    recipe = TrainingRecipe.of(params, splits, names.sids)
    scratch = Checkpoints(folder / ".sidpipe", "startup")
    trainer = trainer_of(recipe, splits, names, torch.device("cpu"), checkpoints=scratch, world=World(), resume=None)
    say_cost("trainer")
    next(iter(trainer.loader.rest_of_epoch(0, 0, None)))
    say_cost("first step ready")


def main() -> None:
    """Parse the arguments, make the inputs where they are not there, and start in a process that made nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--users", type=int, default=700_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    options = parser.parse_args()
    folder = options.folder.resolve()
    if (folder / "data/interactions/items.parquet").exists():
        start(folder)
        return
    make(folder, options.users, options.items)
    print(f"made {folder}: run the same command again to measure")


if __name__ == "__main__":
    main()
