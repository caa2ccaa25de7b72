"""Training speed of GR at length 200 beside a padded HSTU, compiled and eager, in one process; appends rows.

    python benchmarks/actions.py --commit ID                 # three sizes of network, each arm tuned for its batch size

Arms: `ours`, the backbone `gr` on packed histories, compiled and recorded; `compiled`, `PaddedHstu` of
actions_models.py under torch.compile; `eager`, the same without. All train in bfloat16 with AdamW and 128 shared draws.
Each arm runs with every number of windows of `--sizes`; its best counts. Histories are synthetic, from a seed: lengths
are log-normal with the median and mean of MovieLens-1M (96 and about 150 items, 20 at least, the last 200 are read),
3,416 items. Batches lie ready on the device, so that the figures are those of steps. A row has real items per second:
padding does not count. Memory is the peak above what was allocated before.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from actions_models import PaddedHstu
from defaults import default_params, some
from torch import Tensor

from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.machine import pick_device, wait_for
from pipeline.packing.batch import Batch
from pipeline.packing.shape import Shape
from pipeline.strategies.base import Sampler, Strategy
from pipeline.strategies.registry import choose_strategies
from pipeline.training.collate import Collator
from pipeline.training.config import TrainConfig
from pipeline.training.negatives import Negatives
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

ITEMS = 3_416
LONGEST = 200  # items of a history
DRAWS = 128  # of each batch, which stand for the catalogue
BATCHES = 4  # that lie ready
SHAPES: dict[str, dict[str, Any]] = {  # HSTU's published sizes
    "gr": {"decoder_layers": 2, "d_model": 50, "heads": 1, "d_head": 50},
    "gr-large": {"decoder_layers": 8, "d_model": 50, "heads": 2, "d_head": 25},
    "ml-20m": {"decoder_layers": 4, "d_model": 256, "heads": 4, "d_head": 64},
}
Train = Callable[[], Tensor]


class Users:
    """Synthetic users: their items end to end, times, and one window each."""

    def __init__(self, count: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        lengths = np.clip(np.exp(rng.normal(4.56, 0.95, count)), 20, 2314).astype(np.int64)
        kept = np.minimum(lengths, LONGEST + 1)
        ends = np.cumsum(kept) - 1  # the target of each user
        popularity = 1 / (np.arange(ITEMS) + 20)
        self.items_M = rng.choice(ITEMS, int(kept.sum()), p=popularity / popularity.sum()).astype(np.int32)
        self.times_M = 10**9 + np.cumsum(np.exp(rng.uniform(0, 12, len(self.items_M)))).astype(np.int64)
        self.windows = Windows(ends - kept + 1, ends)
        self.counts_I = np.bincount(self.items_M, minlength=ITEMS)


def config_of(shape: str) -> BackboneConfig:
    values = {"dropout": 0.2, "separators": False, "content": False, "temperature": 0.05, "negatives": DRAWS}
    config: BackboneConfig = some(BackboneConfig, name="gr", **values, **SHAPES[shape])
    return config


def batches_of(users: Users, size: int, device: torch.device) -> tuple[list[Batch], list[int]]:
    """Return ready batches of one shape, and the real items of each."""
    codes_IL = torch.arange(ITEMS, device=device)[:, None]
    negatives = Negatives(users.counts_I, DRAWS, seed=0)
    collate = Collator(
        users.items_M, codes_IL, times_M=users.times_M, longest=LONGEST, all_targets=True, negatives=negatives
    )
    parts = [users.windows[i * size : (i + 1) * size] for i in range(BATCHES)]
    shape = Shape.of([part.lengths_W for part in parts], LONGEST)
    ones = np.ones(size, np.float32)
    steps = [Step(0, number, part, ones) for number, part in enumerate(parts)]
    items = [int(part.lengths_W.sum()) for part in parts]
    fill = shape if device.type == "cuda" else None
    return [collate(step, np.arange(size), shape=fill) for step in steps], items


def ours(shape: str, users: Users, size: int, device: torch.device) -> tuple[Train, list[int]]:
    """This engine, as training uses it."""
    catalogue = Catalogue(np.arange(ITEMS)[:, None], (ITEMS,), digit=False, trained_I=np.ones(ITEMS, bool)).to(device)
    network = choose_strategies("full", default_params().strategies).network()
    model = network.build(config_of(shape), catalogue).train()
    step = OptimizerStep(some(TrainConfig, learning_rate=1e-3), model, Strategy(network, Sampler()))
    ready, items = batches_of(users, size, device)
    shares = itertools.cycle([torch.full((), 1 / count, device=device) for count in items])
    batches = itertools.cycle(ready)

    def train() -> Tensor:
        share = next(shares)
        loss = step.gradients(next(batches), share)
        step.update()
        return loss * share

    return train, items


def padded(shape: str, users: Users, size: int, device: torch.device, compiled: bool) -> tuple[Train, list[int]]:
    """HSTU over padded histories."""
    model = PaddedHstu(config_of(shape), ITEMS, LONGEST).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=device.type == "cuda")
    forward: Any = torch.compile(model, dynamic=False) if compiled else model
    ready, items = batches_of(users, size, device)
    inputs = itertools.cycle([_padded(batch, size) for batch in ready])

    def train() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss: Tensor = forward(*next(inputs))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return train, items


def _padded(batch: Batch, size: int) -> tuple[Tensor, ...]:
    """Return items, times, targets [W, P], which of them are real, the draws and their logarithms."""
    histories, sampled = batch.histories, batch.sampled
    assert sampled is not None
    assert histories.times_N is not None
    real = batch.weights_W > 0  # per item; windows that fill the batch are left out
    lengths_W = histories.lengths_W
    window_N = torch.repeat_interleave(torch.arange(len(lengths_W), device=lengths_W.device), lengths_W)
    position_N = torch.arange(len(window_N), device=lengths_W.device) - (lengths_W.cumsum(0) - lengths_W)[window_N]
    rows = torch.unique(window_N[real])
    assert len(rows) == size
    row_of = torch.zeros(len(lengths_W), dtype=torch.int64, device=lengths_W.device)
    row_of[rows] = torch.arange(size, device=lengths_W.device)
    where = (row_of[window_N[real]], position_N[real])
    found = []
    for values in (histories.items_N, histories.times_N, sampled.targets_R):
        padded_WP = values.new_zeros(size, LONGEST)
        padded_WP[where] = values[real]
        found.append(padded_WP)
    real_WP = torch.zeros(size, LONGEST, device=lengths_W.device)
    real_WP[where] = 1
    return (*found, real_WP, sampled.items_M, sampled.log_expected_M)


def measure(arm: str, shape: str, size: int, steps: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Return a row: the median of the repeats in real items per second."""
    cuda = device.type == "cuda"
    users = Users(BATCHES * size)
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    began = time.perf_counter()
    if arm == "ours":
        train, items = ours(shape, users, size, device)
    else:
        train, items = padded(shape, users, size, device, compiled=arm == "compiled")
    first = float(torch.stack([train().clone() for _ in range(BATCHES)]).mean())
    wait_for(device)
    warm = time.perf_counter() - began
    rates = []
    for _ in range(repeats):
        began = time.perf_counter()
        losses = [train().clone() for _ in range(steps)]
        wait_for(device)
        rates.append(sum(items) / BATCHES * steps / (time.perf_counter() - began))
    last = float(torch.stack(losses[-BATCHES:]).mean())
    if not np.isfinite([first, last]).all() or last >= first:
        raise RuntimeError(f"{arm} {shape} {size}: the loss went from {first:.4f} to {last:.4f}")
    memory = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else 0.0
    return {
        "kind": "gr speed",
        "arm": arm,
        "shape": shape,
        "size": size,
        "items_per_second": round(float(np.median(rates))),
        "low": round(min(rates)),
        "high": round(max(rates)),
        "peak_memory_gib": round(memory, 2),
        "warm_seconds": round(warm, 1),
        "first_loss": round(first, 4),
        "last_loss": round(last, 4),
    }


def main() -> None:
    """Measure every arm at every size, and append a row of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--arms", default="ours,compiled,eager")
    parser.add_argument("--sizes", default="64,128,256,512,1024", help="windows of a step")
    parser.add_argument("--steps", type=int, default=40, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--raw", type=Path, default=Path("actions.jsonl"))
    args = parser.parse_args()
    device = pick_device("auto")
    hardware = f"1 {torch.cuda.get_device_name()}" if device.type == "cuda" else "CPU"
    for shape, size, arm in itertools.product(
        args.shapes.split(","), map(int, args.sizes.split(",")), args.arms.split(",")
    ):
        try:
            row = measure(arm, shape, size, args.steps, args.repeats, device)
        except torch.OutOfMemoryError:
            row = {"kind": "gr speed", "arm": arm, "shape": shape, "size": size, "failed": "out of memory"}
        row |= {"commit": args.commit, "hardware": hardware, "torch": torch.__version__}
        print(json.dumps(row), flush=True)
        with args.raw.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
