"""Measure what more GPUs bring: one row of training or evaluation by as many processes as torchrun starts.

    python benchmarks/scaling.py train && python benchmarks/scaling.py evaluate            # one GPU
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py train                   # two, on the same steps
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py evaluate
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py train --batch-tokens 140800

`train`: params.yaml (at best `preset beauty-fast`) for `--windows` windows, into a temporary folder; windows/s are
those of optimizer steps after compilation. `evaluate` ranks all test users with what `train` left there, twice: the
second time counts, when the search is recorded; users/s of the slowest process. Reads data/.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.artifacts import Splits
from pipeline.config import Params, load_params
from pipeline.decoding.ranking import Ranker
from pipeline.distributed import joined
from pipeline.generator import load_generator
from pipeline.machine import pick_device
from pipeline.train.stage import run


def train(params: Params, folder: Path) -> float:
    """Windows a second, on each process."""
    return float(
        run(params, output=folder / "generator", reports=folder / "reports", scratch=folder / "scratch")[
            "windows_per_second"
        ]
    )


def evaluate(params: Params, folder: Path) -> float:
    """Users a second, all processes together."""
    device = pick_device(params.train.device)
    splits = Splits.read()
    config = params.evaluate
    with joined(device) as world:
        generator = load_generator(folder / "generator", device)
        users_U = splits.targets("test")[0]
        ranker = Ranker(
            generator.catalogue,
            splits,
            "test",
            beam=config.beam,
            decoding=config.decoding,
            batch_users=config.batch_users,
            users=users_U[world.share],
        )
        for _ in range(2):
            world.sum(torch.zeros(1, device=device)).item()  # begin together
            began = time.perf_counter()
            ranker.rank(generator.model)
            world.sum(torch.zeros(1, device=device)).item()
            seconds = time.perf_counter() - began
    return len(users_U) / seconds


def main() -> None:
    """Print the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["train", "evaluate"])
    parser.add_argument("--windows", type=int, default=3_500_000)
    parser.add_argument("--batch-tokens", type=int, help="of a step, over all processes; else that of params.yaml")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sidpipe-scaling")
    args = parser.parse_args()
    params = load_params(Path("params.yaml"))
    params = replace(
        params,
        train=replace(
            params.train,
            max_windows=args.windows,
            validate_every=10**6,
            batch_tokens=args.batch_tokens or params.train.batch_tokens,
        ),
    )
    if args.what == "train":
        said = f"{params.train.batch_tokens:,} tokens a step: {train(params, args.folder):,.0f} windows/s"
    else:
        said = (
            f"beam {params.evaluate.beam}, {params.evaluate.batch_users:,} users a batch: "
            f"{evaluate(params, args.folder):,.0f} users/s"
        )
    if os.environ.get("RANK", "0") == "0":
        print(f"{os.environ.get('WORLD_SIZE', '1')} processes, {said}")


if __name__ == "__main__":
    main()
