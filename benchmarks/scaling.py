"""What more GPUs bring: one row of training and evaluation by as many processes as torchrun starts.

    python benchmarks/scaling.py                                                  # one GPU
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py                # two, on the same steps
    torchrun --standalone --nproc-per-node 2 benchmarks/scaling.py --batch-tokens 281600

Trains params.yaml (here: `preset beauty-fast`) for `--windows` windows into a temporary folder, and ranks all test
users with what it learned, twice: the second time counts, when the search is recorded. windows/s are those of optimizer
steps after compilation; users/s of the slowest process. Reads data/.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.artifacts import Splits
from pipeline.backbones.generator import load_generator
from pipeline.config import Params, load_params
from pipeline.distributed import joined
from pipeline.machine import pick_device
from pipeline.ranking import Ranker
from pipeline.train.stage import run


def train(params: Params, folder: Path) -> float:
    """Windows a second."""
    return float(run(params, output=folder / "generator", reports=folder / "reports",
                     scratch=folder / "scratch")["windows_per_second"])


def evaluate(params: Params, folder: Path) -> float:
    """Users a second."""
    device, splits, config = pick_device(params.train.device), Splits.read(), params.evaluate
    with joined(device) as world:
        generator = load_generator(folder / "generator", device)
        users_U = splits.targets("test")[0]
        ranker = Ranker(generator.catalogue, splits, "test", beam=config.beam, decoding=config.decoding,
                        batch_users=config.batch_users, users=users_U[world.rank::world.size])
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
    parser.add_argument("--windows", type=int, default=3_500_000)
    parser.add_argument("--batch-tokens", type=int, help="of a step, over all processes; else that of params.yaml")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "sidpipe-scaling")
    args = parser.parse_args()
    params = load_params(Path("params.yaml"))
    params = replace(params, train=replace(params.train, max_windows=args.windows, validate_every=10**6,
                                           batch_tokens=args.batch_tokens or params.train.batch_tokens))
    trained, ranked = train(params, args.folder), evaluate(params, args.folder)
    if os.environ.get("RANK", "0") == "0":
        print(f"{os.environ.get('WORLD_SIZE', '1')} processes, {params.train.batch_tokens:,} tokens a step: "
              f"{trained:,.0f} windows/s, {ranked:,.0f} users/s (beam {params.evaluate.beam}, "
              f"{params.evaluate.batch_users:,} a batch)")


if __name__ == "__main__":
    main()
