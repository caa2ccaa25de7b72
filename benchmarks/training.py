"""Training speed on GRID's windows, in one run on one machine; prints one table.

    python benchmarks/training.py                            # packed and padded `full` at the TIGER shape
    python benchmarks/training.py --rows packed --profile    # where the time of a step goes

Windows are those of GRID's sampler: groups of 32 users, of each group up to 512 contiguous windows drawn with
replacement and then made distinct, at most 29 items of history, seed 0. Reads data/splits and data/sids.

Definitions. tokens/s: encoder positions of real tokens, separators included. TFLOP/s: matrix products of the forward
pass (counted over the shapes, attention's own included) times three. Share: of 989 TFLOP/s, an H200's dense bfloat16.
Seconds are those of optimizer steps, after compilation and warm-up.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from pipeline.artifacts import Sids, Splits
from pipeline.backbones import build_backbone
from pipeline.backbones.catalogue import Catalogue
from pipeline.backbones.config import BackboneConfig
from pipeline.machine import peak_memory_gib, pick_device
from pipeline.strategies import build_strategy
from pipeline.train.batches import Step, collate, common_shape
from pipeline.train.config import TrainConfig
from pipeline.train.learner import Learner, Part
from pipeline.train.windows import Windows

TIGER = BackboneConfig(encoder_layers=4, decoder_layers=4, d_model=128, heads=6, d_head=64, d_ff=1024,
                       ff_hidden_layers=2, dropout=0.15)
PEAK = 989e12
LONGEST = 29


def grid_windows(splits: Splits, seed: int = 0) -> Windows:
    """One pass of GRID's sampler, in random order."""
    rng = np.random.default_rng(seed)
    begin, end = np.asarray(splits.offsets[:-1]), np.asarray(splits.train_end)
    users, starts, ends = rng.permutation(splits.users), [], []
    for group in np.array_split(users, max(1, len(users) // 32)):
        first = np.concatenate([np.repeat(np.arange(begin[u], end[u]), np.arange(end[u] - begin[u])[::-1])
                                for u in group])
        last = np.concatenate([begin[u] + 1 + np.concatenate([np.arange(i, end[u] - begin[u] - 1)
                               for i in range(end[u] - begin[u])] or [np.zeros(0)]) for u in group]).astype(np.int64)
        drawn = np.unique(rng.integers(0, len(first), 512))
        starts.append(np.maximum(first[drawn], last[drawn] - LONGEST))
        ends.append(last[drawn])
    order = rng.permutation(sum(map(len, starts)))
    return Windows(np.concatenate(starts)[order], np.concatenate(ends)[order])


def steps(windows: Windows, size: int) -> Iterator[Step]:
    """Steps of `size` windows, for ever."""
    while True:
        for first in range(0, len(windows) - size + 1, size):
            yield Step(0, first + size, windows[first:first + size], np.ones(size, np.float32))


def flops_per_window(config: BackboneConfig, widths: tuple[int, ...], lengths: np.ndarray) -> float:
    """Matrix products of a forward pass, mean over windows of `lengths` items: 2 per multiply-add."""
    d, inner, levels = config.d_model, config.heads * config.d_head, len(widths)
    ff = 2 * d * config.d_ff + (config.ff_hidden_layers - 1) * config.d_ff**2
    tokens = lengths * (levels + config.separators)
    encoder = config.encoder_layers * (tokens * (4 * d * inner + ff) + 2 * inner * tokens**2)
    cross = tokens * 2 * d * inner + 2 * inner * levels * tokens
    decoder = config.decoder_layers * (levels * (6 * d * inner + ff) + 2 * inner * levels**2 + cross)
    return float(np.mean(2 * (encoder + decoder + d * sum(widths))))


@dataclass(frozen=True)
class Row:
    name: str
    windows_per_second: float
    tokens_per_second: float
    flops: float
    memory_gib: float
    warm_seconds: float

    def __str__(self) -> str:
        return (f"{self.name:28} {self.windows_per_second:10,.0f} windows/s"
                f" {self.tokens_per_second / 1e6:7.2f} M tokens/s"
                f" {self.flops / 1e12:7.1f} TFLOP/s {self.flops / PEAK:6.1%} {self.memory_gib:6.2f} GiB"
                f"  compile and warm-up {self.warm_seconds:.0f} s")


def measure(name: str, splits: Splits, catalogue: Catalogue, windows: Windows, config: TrainConfig, size: int,
            count: int, profile: bool) -> Row:
    """Train `count` steps of `size` windows after warming up, and time them."""
    device, items = catalogue.codes_IL.device, np.asarray(splits.items_N)
    torch.manual_seed(0)
    if device.type == "cuda":  # what a recording holds is counted while it is made
        torch.cuda.reset_peak_memory_stats()
    learner = Learner(config, build_backbone(TIGER, catalogue).train(), build_strategy("full", {}))
    per_item = catalogue.levels + TIGER.separators
    pad_to = (LONGEST + 1) * per_item if config.batching == "padded" else 0
    source, rows = steps(windows, size), np.arange(size)
    drawn = [next(source) for _ in range(12)]
    share, shape = torch.full((), 1 / size, device=device), common_shape(drawn, 1, LONGEST) if learner.records else None
    batches = [collate(items, step, rows, catalogue.codes_IL, pad_to, LONGEST, shape) for step in drawn]

    def train(i: int) -> None:
        learner.gradients(Part(batches[i % len(batches)], share))
        learner.update()

    began = time.perf_counter()
    for i in range(4):
        train(i)
    _wait(device)
    warm = time.perf_counter() - began
    began = time.perf_counter()
    for i in range(count):
        train(i)
    _wait(device)
    rate = size * count / (time.perf_counter() - began)
    if profile:
        _profile(train)
    lengths = np.concatenate([step.windows.lengths_W for step in drawn])
    memory = peak_memory_gib(device)
    return Row(name, rate, rate * lengths.mean() * per_item, 3 * rate * flops_per_window(
        TIGER, catalogue.widths, lengths), memory, warm)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _profile(train: "object") -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for i in range(3):
            train(i)  # type: ignore[operator]
        torch.cuda.synchronize()
    total = sum(event.self_device_time_total for event in record.key_averages())
    for event in sorted(record.key_averages(), key=lambda e: -e.self_device_time_total)[:24]:
        print(f"  {event.self_device_time_total / total:6.1%} {event.self_device_time_total / 3e3:8.2f} ms a step "
              f"{event.count // 3:4} calls  {event.key[:90]}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="packed,padded,small", help="packed, padded, small (417 windows a step)")
    parser.add_argument("--windows", type=int, default=4096, help="windows of a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    device, splits, sids = pick_device("auto"), Splits.read(), Sids.read()
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    windows, config = grid_windows(splits), TrainConfig(optimizer="adam", compile=not args.eager)
    print(f"{len(windows):,} windows, mean history {windows.lengths_W.mean():.2f} items, on "
          f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    kinds = {"packed": (config, args.windows), "padded": (replace(config, batching="padded"), args.windows),
             "small": (config, 417)}
    for kind in args.rows.split(","):
        chosen, size = kinds[kind]
        print(measure(f"full, {chosen.batching}, {size} a step", splits, catalogue, windows, chosen, size, args.steps,
                      args.profile), flush=True)
        torch.compiler.reset()


if __name__ == "__main__":
    main()
