"""Measure what pruning saves in optimizer steps and evaluation: full and rastp at equal windows, packed and padded.

    python benchmarks/rastp.py --devices cuda
    python benchmarks/rastp.py --devices cpu --windows 32 --steps 2 --users 32

Reads data/splits and data/sids, at best those of Amazon Beauty with split.max_history 30 and rkmeans-256x3. Windows:
`random` are training windows from a random start; `full` are histories of 30 items. The network has the TIGER shape.

Columns. ms: one optimizer step, forward, backward and update. saved: 1 - time / time of packed full, on the same
windows and device. limit: the same of the matrix products of a step, counted over shapes, which is what a pruned step
can save at most when everything else is free; `of limit` is saved / limit. vs padded: 1 - time / time of padded full,
the paper's figure (26.7% after layer 2, 38.2% after layer 1, keep 1/3, on an A100). total: `--total` steps and one
evaluation of `--users` users by a beam of 10. M tokens/s: real encoder tokens that enter, per second of a step.
GiB: the most memory that steps take (GPU). A device that is not here is a row that says missing.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from defaults import some
from training import TIGER

from pipeline.artifacts import Sids, Splits
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import beam_search
from pipeline.machine import wait_for
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories
from pipeline.strategies.base import Network, Sampler, Strategy
from pipeline.strategies.rastp.config import RastpConfig
from pipeline.strategies.rastp.strategy import PrunedNetwork
from pipeline.training.collate import Collator, common_shape
from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import autocast
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.steps import Step
from pipeline.training.windows import Epochs, Windows

LONGEST = 30
BATCHES, WARM = 6, 3
RELEASED = some(
    RastpConfig,
    min_tokens=1,
    separators="compete",
    base="padded",
    keep_positions=False,
    padded_queries="count",
    score_dropout="after",
)


@dataclass(frozen=True)
class Way:
    """One way of training. config None: full."""

    name: str
    padded: bool = False
    config: RastpConfig | None = None

    def strategy(self, pad_to: int) -> Strategy:
        return Strategy(PrunedNetwork(self.config, pad_to) if self.config else Network(), Sampler())


@dataclass(frozen=True)
class Measured:
    """The figures of one way on one kind of windows."""

    step_seconds: float
    eval_seconds: float
    tokens: float  # real encoder tokens of a step
    flops: float  # of a step's forward pass
    gib: float


def ways() -> list[Way]:
    """The rows: full, as released after layers 1 and 2, and ours after 1, 2 and 3 at a half and a third."""
    rows = [Way("padded full", padded=True), Way("packed full")]
    rows += [
        Way(f"padded rastp-released 1/3 after {after}", True, replace(RELEASED, after_layer=after)) for after in (1, 2)
    ]
    notes: tuple[tuple[Literal["keep", "compete"], str], ...] = (("keep", ""), ("compete", ", separators compete"))
    return rows + [
        Way(
            f"packed rastp {name} after {after}{note}",
            False,
            some(RastpConfig, keep=keep, after_layer=after, separators=separators),
        )
        for separators, note in notes
        for after in (1, 2, 3)
        for name, keep in (("1/2", 1 / 2), ("1/3", 1 / 3))
    ]


def windows_of(kind: str, splits: Splits, count: int) -> Windows:
    """`count` windows. `full` ones run over the borders of users: only their length matters here."""
    if kind == "random":
        epochs = Epochs(splits, "random_start", 0)
        parts = [epochs.take(number, 0, len(epochs)) for number in range(-(-count // len(epochs)))]
        return Windows(
            *(np.concatenate([getattr(part, name) for part in parts])[:count] for name in ("starts_W", "ends_W"))
        )
    starts_W = np.random.default_rng(0).integers(0, len(splits.items_N) - LONGEST - 1, count)
    return Windows(starts_W, starts_W + LONGEST)


def measure(way: Way, splits: Splits, catalogue: Catalogue, kind: str, args: argparse.Namespace) -> Measured:
    """Train and evaluate after warming up."""
    device, per_item = catalogue.codes_IL.device, catalogue.levels + TIGER.separators
    torch.manual_seed(0)
    pad_to = LONGEST * per_item if way.padded else 0
    strategy, config = way.strategy(pad_to), some(TrainConfig, optimizer="adam", compile=not args.eager)
    model = strategy.network.build(TIGER, catalogue).train()
    optimizer_step, count = OptimizerStep(config, model, strategy), args.windows
    drawn = windows_of(kind, splits, count * BATCHES)
    steps = [Step(0, 0, drawn[i * count : (i + 1) * count], np.ones(count, np.float32)) for i in range(BATCHES)]
    share = torch.full((), 1 / count, device=device)
    shape = common_shape(steps, 1, LONGEST) if optimizer_step.records else None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    collate = Collator(np.asarray(splits.items_N), catalogue.codes_IL, pad_to=pad_to, longest=LONGEST)
    batches = [collate(step, np.arange(count), shape=shape) for step in steps]

    def train(number: int) -> None:
        optimizer_step.gradients(batches[number % BATCHES], share)
        optimizer_step.update()

    warm = 2 * BATCHES + WARM if device.type == "cuda" else 1  # on a GPU one recording per shape
    step_seconds = _timed(train, range(args.steps), device, warm)
    gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    users = list(_evaluation(splits, kind, args.users, device))
    with autocast(config, device):
        eval_seconds = len(users) * _timed(lambda i: beam_search(model.eval(), users[i], 10), range(len(users)), device)
    lengths = [step.windows.lengths_W for step in steps]
    return Measured(
        step_seconds,
        eval_seconds,
        sum(map(np.sum, lengths)) / BATCHES * per_item,
        _flops(model, way, lengths, pad_to, strategy) / BATCHES,
        gib,
    )


def _timed(work: object, numbers: range, device: torch.device, warm: int = 1) -> float:
    """Mean seconds of one call, after some that do not count."""

    for number in range(warm):
        work(number % len(numbers))  # type: ignore[operator]
    wait_for(device)
    began = time.perf_counter()
    for number in numbers:
        work(number)  # type: ignore[operator]
    wait_for(device)
    return (time.perf_counter() - began) / len(numbers)


def _evaluation(splits: Splits, kind: str, users: int, device: torch.device) -> Iterator[Histories]:
    """Histories in batches of at most 256, near lengths together."""
    windows = windows_of(kind, splits, users)
    order = np.argsort(windows.lengths_W, kind="stable")
    for rows in np.array_split(order, max(1, users // 256)):
        part = windows[rows]
        items = np.concatenate(
            [np.asarray(splits.items_N)[a:b] for a, b in zip(part.starts_W, part.ends_W, strict=True)]
        )
        yield Histories.pack(items, np.concatenate([[0], np.cumsum(part.lengths_W)]), device, longest=LONGEST)


def _flops(model: Backbone, way: Way, lengths: list[np.ndarray], pad_to: int, strategy: Strategy) -> float:
    """Matrix products of the forward pass over shapes, 2 per multiply-add: projections, attention, heads."""
    levels, per_item = model.catalogue.levels, len(model.token_names)
    d, inner = TIGER.d_model, TIGER.heads * TIGER.d_head
    ff = 2 * d * TIGER.d_ff + (TIGER.ff_hidden_layers - 1) * TIGER.d_ff**2
    total, layers = 0.0, TIGER.encoder_layers
    for items_W in lengths:
        before_W = np.full(len(items_W), pad_to) if pad_to else items_W * per_item
        after_W = strategy.network.tokens_kept(items_W, per_item)
        if pad_to:
            after_W = (
                np.full(len(items_W), model.pruner.size(items_W, LONGEST, pad_to) // len(items_W))
                if model.pruner is not None
                else before_W
            )
        whole = way.config.after_layer if way.config else layers
        for count, tokens_W in ((whole, before_W), (layers - whole, after_W)):
            total += count * float((tokens_W * (4 * d * inner + ff) + 2 * inner * tokens_W**2).sum())
        cross = float((after_W * (2 * d * inner + 2 * inner * levels)).sum())
        own = levels * (6 * d * inner + ff) + 2 * inner * levels**2
        total += TIGER.decoder_layers * (cross + len(items_W) * own) + len(items_W) * d * sum(model.catalogue.widths)
    return 2 * total


def table(device: str, splits: Splits, sids: Sids, kind: str, args: argparse.Namespace) -> None:
    """Print the rows of one device and kind of windows as they are measured."""
    print(f"\n{device}, {kind} windows, {args.windows} a step")
    print(
        f"{'':44}{'ms':>9}{'saved':>8}{'limit':>8}{'of limit':>10}{'vs padded':>11}{'total s':>9}"
        f"{'M tokens/s':>12}{'GiB':>7}"
    )
    if device == "cuda" and not torch.cuda.is_available():
        for way in ways():
            print(f"{way.name:44}  missing: no GPU here")
        return
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    found: dict[str, Measured] = {}
    for way in ways():
        if not any(word in way.name for word in ("full", *args.rows.split(","))):
            continue
        found[way.name] = measure(way, splits, catalogue, kind, args)
        print(_line(way, found, args), flush=True)


def _line(way: Way, found: dict[str, Measured], args: argparse.Namespace) -> str:
    own = found[way.name]
    padded, packed = found["padded full"], found.get("packed full")
    cells = f"{own.step_seconds * 1e3:9.1f}"
    if packed and packed is not own and not way.padded:
        saved, limit = 1 - own.step_seconds / packed.step_seconds, 1 - own.flops / packed.flops
        cells += f"{saved:8.1%}{limit:8.1%}{saved / limit:10.0%}"
    else:
        cells += f"{'':26}"
    total = args.total * own.step_seconds + own.eval_seconds
    return (
        f"{way.name:44}{cells}{1 - own.step_seconds / padded.step_seconds:11.1%}{total:9.1f}"
        f"{own.tokens / own.step_seconds / 1e6:12.3f}{own.gib:7.2f}"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="cpu,cuda")
    parser.add_argument("--kinds", default="random,full")
    parser.add_argument("--windows", type=int, help="windows of a step; else 4096 on a GPU and 48 on a CPU")
    parser.add_argument("--steps", type=int, help="else 30 and 3")
    parser.add_argument("--users", type=int, help="of the evaluation; else 4096 and 64")
    parser.add_argument("--total", type=int, default=100, help="steps of the column `total`")
    parser.add_argument("--rows", default="", help="only those whose name has one of these words, comma-separated")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    splits, sids = Splits.read(), Sids.read()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {name}")
    for device in args.devices.split(","):
        sizes = (
            {"windows": 4096, "steps": 30, "users": 4096}
            if device == "cuda"
            else {"windows": 48, "steps": 3, "users": 64}
        )
        chosen = argparse.Namespace(**{**vars(args), **{key: vars(args)[key] or size for key, size in sizes.items()}})
        for kind in args.kinds.split(","):
            table(device, splits, sids, kind, chosen)


if __name__ == "__main__":
    main()
