"""Training speed on GRID's windows, in one run on one machine; prints one table.

    python benchmarks/training.py                            # the TIGER shape, packed and padded; skipgr.py has skipgr
    python benchmarks/training.py --rows packed --profile    # where the time of a step goes

Windows are those of GRID's sampler: groups of 32 users, of each group up to 512 contiguous windows drawn with
replacement and then made distinct, at most 29 items of history, seed 0. Reads data/splits and data/sids.

Definitions. tokens/s: encoder positions of real tokens, separators included (rastp: before it prunes). TFLOP/s: matrix
products of full's forward pass (counted over the shapes, attention's own included) times three. Share: of 989 TFLOP/s,
an H200's dense bfloat16. Seconds are those of optimizer steps, after compilation and warm-up. Batches are 12 that lie
ready on the device; in the rows `fed` each is made while the step before it runs, as in training, so that the two say
whether the GPU ever waits.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from defaults import default_params, some

from pipeline.artifacts import Sids, Splits
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.machine import PEAKS, peak_memory_gib, pick_device, wait_for
from pipeline.packing.batch import Batch
from pipeline.strategies.base import Sampler, Strategy
from pipeline.strategies.registry import choose_strategies
from pipeline.training.collate import Collator, common_shape
from pipeline.training.config import TrainConfig
from pipeline.training.loader import MEASURED_STEPS, prefetched_on_stream
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.steps import Step
from pipeline.training.windows import Windows

TIGER = some(
    BackboneConfig,
    encoder_layers=4,
    decoder_layers=4,
    d_model=128,
    heads=6,
    d_head=64,
    d_ff=1024,
    ff_hidden_layers=2,
    dropout=0.15,
)
PEAK = PEAKS["H200"]
LONGEST = 29


def grid_windows(splits: Splits, seed: int = 0) -> Windows:
    """One pass of GRID's sampler, in random order."""
    rng = np.random.default_rng(seed)
    begin, end = np.asarray(splits.offsets[:-1]), np.asarray(splits.train_end)
    users = rng.permutation(splits.users)
    starts, ends = [], []
    for group in np.array_split(users, max(1, len(users) // 32)):
        first = np.concatenate(
            [np.repeat(np.arange(begin[u], end[u]), np.arange(end[u] - begin[u])[::-1]) for u in group]
        )
        last = np.concatenate(
            [
                begin[u]
                + 1
                + np.concatenate(
                    [np.arange(i, end[u] - begin[u] - 1) for i in range(end[u] - begin[u])] or [np.zeros(0)]
                )
                for u in group
            ]
        ).astype(np.int64)
        drawn = np.unique(rng.integers(0, len(first), 512))
        starts.append(np.maximum(first[drawn], last[drawn] - LONGEST))
        ends.append(last[drawn])
    order = rng.permutation(sum(map(len, starts)))
    return Windows(np.concatenate(starts)[order], np.concatenate(ends)[order])


def steps(windows: Windows, size: int) -> Iterator[Step]:
    """Steps of `size` windows, for ever."""
    while True:
        for first in range(0, len(windows) - size + 1, size):
            yield Step(0, first + size, windows[first : first + size], np.ones(size, np.float32))


def forward_flops(config: BackboneConfig, widths: tuple[int, ...], lengths: np.ndarray) -> float:
    """Matrix products of a forward pass, mean over windows of `lengths` items: 2 per multiply-add."""
    d, inner = config.d_model, config.heads * config.d_head
    levels = len(widths)
    ff = 2 * d * config.d_ff + (config.ff_hidden_layers - 1) * config.d_ff**2
    tokens = lengths * (levels + config.separators)
    encoder = config.encoder_layers * (tokens * (4 * d * inner + ff) + 2 * inner * tokens**2)
    cross = tokens * 2 * d * inner + 2 * inner * levels * tokens
    decoder = config.decoder_layers * (levels * (6 * d * inner + ff) + 2 * inner * levels**2 + cross)
    return float(np.mean(2 * (encoder + decoder + d * sum(widths))))


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    windows_per_second: float
    tokens_per_second: float
    flops: float | None  # None: not counted
    memory_gib: float
    warm_seconds: float

    def __str__(self) -> str:
        counted = " " * 23 if self.flops is None else f"{self.flops / 1e12:8.1f} TFLOP/s {self.flops / PEAK:6.1%}"
        return (
            f"{self.name:32} {self.windows_per_second:10,.0f} windows/s"
            f" {self.tokens_per_second / 1e6:7.2f} M tokens/s{counted} {self.memory_gib:6.2f} GiB"
            f"  compile and warm-up {self.warm_seconds:.0f} s"
        )


def measure(  # noqa: PLR0913 - what one row of the table differs in
    strategy: str,
    splits: Splits,
    catalogue: Catalogue,
    windows: Windows,
    config: TrainConfig,
    size: int,
    count: int,
    profile: bool,
    fed: bool,
) -> Row:
    """Train `count` steps of `size` windows after warming up, and time them."""
    device, items = catalogue.codes_IL.device, np.asarray(splits.items_N)
    chosen = choose_strategies(strategy, default_params().strategies)
    per_item = chosen.input_tokens_per_item(catalogue.levels, TIGER.separators)
    pad_to = (LONGEST + 1) * per_item if config.batching == "padded" else 0
    network = chosen.network()
    torch.manual_seed(0)
    if device.type == "cuda":  # what a recording holds is counted while it is made
        torch.cuda.reset_peak_memory_stats()
    optimizer_step = OptimizerStep(config, network.build(TIGER, catalogue).train(), Strategy(network, Sampler()))
    source, rows = steps(windows, size), np.arange(size)
    drawn = [next(source) for _ in range(12)]
    share, shape = torch.full((), 1 / size, device=device), None
    if optimizer_step.records:
        # A capacity that holds nearly all steps, as `BatchLoader` measures it: each further shape is recorded anew
        shape = common_shape(itertools.islice(steps(windows, size), MEASURED_STEPS), 1, LONGEST)

    collate = Collator(items, catalogue.codes_IL, pad_to=pad_to, longest=LONGEST, weigh_items=network.items)

    def batch_of(step: Step) -> Batch:
        return collate(step, rows, shape=shape, item_counts=collate.count_items(step))

    ready = itertools.cycle([(step, [batch_of(step)]) for step in ([] if fed else drawn)])
    made: Iterator[tuple[Step, list[Batch]]] = ((step, [batch_of(step)]) for step in source) if fed else ready
    if fed and device.type == "cuda":
        made = prefetched_on_stream(made, device)

    def train() -> None:
        _, (batch,) = next(made)
        optimizer_step.gradients(batch, share)
        optimizer_step.update()

    began = time.perf_counter()
    for _ in range(4):
        train()
    wait_for(device)
    warm = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(count):
        train()
    wait_for(device)
    rate = size * count / (time.perf_counter() - began)
    if profile:
        _profile(train)
    lengths = np.concatenate([step.windows.lengths_W for step in drawn])
    memory = peak_memory_gib(device)
    flops = 3 * rate * forward_flops(TIGER, catalogue.widths, lengths) if strategy == "full" else None
    name = f"{strategy}, {config.batching}, {size} a step" + ", fed" * fed
    return Row(
        name=name,
        windows_per_second=rate,
        tokens_per_second=rate * lengths.mean() * per_item,
        flops=flops,
        memory_gib=memory,
        warm_seconds=warm,
    )


def _profile(train: Callable[[], None]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            train()
        torch.cuda.synchronize()
    total = sum(event.self_device_time_total for event in record.key_averages())
    for event in sorted(record.key_averages(), key=lambda e: -e.self_device_time_total)[:24]:
        print(
            f"  {event.self_device_time_total / total:6.1%} {event.self_device_time_total / 3e3:8.2f} ms a step "
            f"{event.count // 3:4} calls  {event.key[:90]}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows",
        default="packed,fed,padded,small,small-fed,rastp,intrr",
        help="packed, padded, fed, small (417 windows a step), small-fed, rastp, intrr",
    )
    parser.add_argument("--windows", type=int, default=4096, help="windows of a step")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    device = pick_device("auto")
    splits, sids = Splits.read(), Sids.read()
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    windows, config = grid_windows(splits), some(TrainConfig, optimizer="adam", compile=not args.eager)
    print(
        f"{len(windows):,} windows, mean history {windows.lengths_W.mean():.2f} items, on "
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}"
    )
    for kind in args.rows.split(","):
        strategy, size = kind if kind in ("rastp", "intrr") else "full", 417 if "small" in kind else args.windows
        batching: Literal["padded", "packed"] = "padded" if kind == "padded" else "packed"
        print(
            measure(
                strategy,
                splits,
                catalogue,
                windows,
                replace(config, batching=batching),
                size,
                args.steps,
                args.profile,
                "fed" in kind,
            ),
            flush=True,
        )
        torch.compiler.reset()


if __name__ == "__main__":
    main()
