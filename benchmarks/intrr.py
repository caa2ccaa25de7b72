"""IntRR's Tables 2 and 3 for us, where the time of its step goes, and the picture of its redistribution.

    python benchmarks/intrr.py --devices cuda                     # all tables
    python benchmarks/intrr.py --devices cpu --batches 8 --windows 32 --steps 2 --beams 10 --items 500
    python benchmarks/intrr.py --tables picture                   # two items with one Semantic ID, of models/generator

The network is the paper's: decoder 4 layers, width 256, 6 heads of 64, d_ff 1024 in two hidden layers; hstu 4 layers,
width 128, 4 heads; t5 the decoder's sizes, of which intrr uses the encoder. Semantic IDs are 3 x 128 codes and a digit
of 128 values. `30 items` are synthetic histories of exactly 30 items over a random catalogue of `--items`; `Beauty`
reads data/splits and data/sids (histories of at most 30 items, one random window per target).

train (Table 2). samples/s: (history, target) pairs of optimizer steps of `--windows` pairs, one target per window,
compiled and recorded as the trainer does. GiB: the most memory that a step takes, without parameters, their gradients
and optimizer state, which `stays` has. Paper, an L20: Transformer 24,381 -> 42,667 samples/s, 9.70 -> 3.08 GB; HSTU
34,133 -> 46,546 and 2.85 -> 2.65 GB.
parts (of intrr): forward and backward of the item side, the backbone and the target side, each alone and eager, in ms.
latency (Table 3). ms of a batch, from histories on the host to ranked items there, recorded as evaluation does: full
with 32 items (SAC) and 8 (SSL), intrr with 32; beams constrained to the catalogue. Paper, beam 10 and 50: 42.8 and
232.7, 34.0 and 123.3, 33.7 and 79.4.
"""

import argparse
import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from defaults import some
from torch import Tensor

from pipeline.artifacts import Sids, Splits
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import Search
from pipeline.machine import wait_for
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import slices
from pipeline.packing.shape import Shape
from pipeline.strategies.base import Sampler, Strategy
from pipeline.strategies.intrr.config import IntrrConfig
from pipeline.strategies.intrr.model import RecursiveModel
from pipeline.strategies.intrr.network import negative_log_likelihood
from pipeline.strategies.registry import choose_strategies
from pipeline.training.collate import Collator, common_shape
from pipeline.training.config import TrainConfig
from pipeline.training.optimizer import autocast
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.steps import Step
from pipeline.training.windows import Epochs, Windows

WIDE = some(
    BackboneConfig,
    encoder_layers=4,
    decoder_layers=4,
    d_model=256,
    heads=6,
    d_head=64,
    d_ff=1024,
    ff_hidden_layers=2,
    dropout=0.15,
    separators=False,
)
NETWORKS = {
    "decoder": replace(WIDE, name="decoder"),
    "t5": WIDE,
    "hstu": replace(WIDE, name="hstu", d_model=128, heads=4, d_head=32),
}
CODES = 128
LEVELS = 3
DIGITS = 128
BATCHES, WARM = 6, 4


@dataclass(frozen=True, kw_only=True)
class World:
    """A world is what to train on: flat items and their times, a catalogue, and a rule that draws windows."""

    name: str
    items_N: np.ndarray
    times_N: np.ndarray
    catalogue: Catalogue
    windows: Callable[[int], Windows]
    longest: int


def synthetic(args: argparse.Namespace, device: str, length: int) -> World:
    """Histories of exactly `length` items."""
    rng = np.random.default_rng(0)
    codes_IL = np.zeros((args.items, LEVELS + 1), np.int64)
    codes_IL[:, :LEVELS] = rng.integers(0, CODES, (args.items, LEVELS))
    order = np.lexsort(codes_IL.T[::-1])
    same = (np.diff(codes_IL[order], axis=0) == 0).all(1)
    for best in np.flatnonzero(same):  # the digit counts up within a group of equal codes
        codes_IL[order[best + 1], -1] = codes_IL[order[best], -1] + 1
    items_N = rng.integers(0, args.items, 200_000)
    times_N = np.cumsum(rng.integers(60, 9_000, len(items_N)))

    def windows(count: int) -> Windows:
        ends_W = rng.integers(length, len(items_N), count)
        return Windows(ends_W - length, ends_W)

    catalogue = Catalogue(codes_IL, (CODES,) * LEVELS + (DIGITS,)).to(device)
    return World(
        name=f"{length} items", items_N=items_N, times_N=times_N, catalogue=catalogue, windows=windows, longest=length
    )


def beauty(device: str) -> World:
    """Windows of data/splits, one per target of a pass, from random starts."""
    splits, sids = Splits.read(), Sids.read()
    epochs = Epochs(splits, "random_start", 0)

    def windows(count: int) -> Windows:
        parts = [epochs.take(number, 0, len(epochs)) for number in range(-(-count // len(epochs)))]
        return Windows(
            *(np.concatenate([getattr(part, name) for part in parts])[:count] for name in ("starts_W", "ends_W"))
        )

    widths = (*sids.widths[:-1], max(DIGITS, sids.widths[-1]))
    return World(
        name="Beauty",
        items_N=np.asarray(splits.items_N),
        times_N=splits.seconds(),
        catalogue=Catalogue(sids.codes_IL, widths).to(device),
        windows=windows,
        longest=splits.max_history,
    )


def build(name: str, network: str, world: World) -> tuple[Strategy, Backbone]:
    """The strategy, and its model with random weights."""
    torch.manual_seed(0)
    result = choose_strategies(
        name, {"intrr": some(IntrrConfig, digit_width=0)}
    ).network()  # the catalogue's digit is as wide already
    return Strategy(result, Sampler()), result.build(NETWORKS[network], world.catalogue)


# ------------------------------------------------------------------------------------------------------- training


def measure_training(name: str, network: str, world: World, args: argparse.Namespace) -> tuple[float, float, float]:
    """(samples per second, GiB of a step, GiB of what stays between steps)."""
    device, config = world.catalogue.codes_IL.device, some(TrainConfig, optimizer="adam", compile=not args.eager)
    before = allocated(device)
    strategy, model = build(name, network, world)
    optimizer_step, share = (
        OptimizerStep(config, model.train(), strategy),
        torch.full((), 1 / args.windows, device=device),
    )
    drawn, count = world.windows(args.windows * BATCHES), args.windows
    steps = [Step(0, 0, drawn[i * count : (i + 1) * count], np.ones(count, np.float32)) for i in range(BATCHES)]
    shape = common_shape(steps, 1, world.longest) if optimizer_step.records else None
    batches = [batch_of(strategy, step, world, NETWORKS[network].wants_times, shape) for step in steps]

    def train(i: int) -> None:
        optimizer_step.gradients(batches[i % BATCHES], share)
        optimizer_step.update()

    # Batches may have a few sizes, and a recording follows the second call of each.
    seconds = timed(train, args.steps, device, warm=WARM * BATCHES if device.type == "cuda" else 1)
    state = sum(
        t.numel() * t.element_size() for values in optimizer_step.optimizer.state.values() for t in values.values()
    )
    stays = (state + 2 * sum(p.numel() * p.element_size() for p in model.parameters())) / 2**30
    # The peak was reached while the graphs were recorded; replaying them allocates nothing.
    return count / seconds, allocated(device, peak=True) - before - stays, stays


def allocated(device: torch.device, peak: bool = False) -> float:
    """GiB on a GPU, at present or at most since `clean`."""
    if device.type != "cuda":
        return float("nan")
    return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**30


def batch_of(strategy: Strategy, step: Step, world: World, times: bool, shape: Shape | None = None) -> Any:
    """All windows of a step."""
    collate = Collator(
        world.items_N,
        world.catalogue.codes_IL,
        times_M=world.times_N if times else None,
        longest=world.longest,
        weigh_items=strategy.network.items,
    )
    return collate(step, np.arange(len(step.windows)), shape=shape, item_counts=collate.count_items(step))


def measure_parts(network: str, world: World, args: argparse.Namespace) -> list[float]:
    """Seconds of forward and backward of the item side, the backbone and the target side."""
    device, config = world.catalogue.codes_IL.device, some(TrainConfig)
    strategy, built = build("intrr", network, world)
    model = cast(RecursiveModel, built.train())
    step = Step(0, 0, world.windows(args.windows), np.ones(args.windows, np.float32))
    batch = batch_of(strategy, step, world, NETWORKS[network].wants_times)
    width = NETWORKS[network].d_model
    vectors_Nd = torch.randn(len(batch.histories.items_N), width, device=device, requires_grad=True)
    states_Wd = torch.randn(len(batch.codes_WL), width, device=device, requires_grad=True)

    def items() -> Tensor:
        vectors, alignment = model._items(batch.histories.items_N, batch.distinct.items_U, batch.distinct.weights_U)
        return vectors.sum() + alignment

    sides = (
        items,
        lambda: model.backbone.read(vectors_Nd, batch.histories).sum(),
        lambda: negative_log_likelihood(model.ran.teach(states_Wd, batch.codes_WL), batch.codes_WL).sum(),
    )

    def run(side: Callable[[], Tensor]) -> None:
        with autocast(config, device):
            loss = side()
        loss.backward()

    return [timed(lambda _, side=side: run(side), args.steps, device, warm=2) for side in sides]  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------- inference


@torch.no_grad()
def measure_latency(name: str, network: str, world: World, windows: int, beam: int, args: argparse.Namespace) -> float:
    """Seconds from a batch of histories to its ranked items, as evaluation runs it; packing is part of it."""
    device, (_, model) = world.catalogue.codes_IL.device, build(name, network, world)
    drawn = world.windows(windows)
    index, offsets = slices(drawn.starts_W, drawn.lengths_W)
    times_N = world.times_N[index] if NETWORKS[network].wants_times else None
    recorded = device.type == "cuda" and not args.eager
    shape = Shape.of([drawn.lengths_W], world.longest) if recorded else None
    search = Search(cast(Any, model.eval()), beam, shape=shape, longest=world.longest)
    return timed(lambda _: search(world.items_N[index], offsets, times_N).items_WK.cpu(), args.steps, device, 3)


def timed(work: Callable[[int], Any], count: int, device: torch.device, warm: int) -> float:
    """Mean seconds of one call, after some that do not count."""

    for i in range(warm):
        work(i)
    wait_for(device)
    began = time.perf_counter()
    for i in range(count):
        work(i)
    wait_for(device)
    return (time.perf_counter() - began) / count


# ------------------------------------------------------------------------------------------------------- tables


def training_table(device: str, args: argparse.Namespace) -> None:
    for world in worlds(device, args):
        print(f"\ntrain, {device}, {world.name}, {args.windows} samples a step, one target per window")
        print(f"{'':20}{'samples/s':>12}{'gain':>8}{'GiB':>9}{'of full':>9}{'stays GiB':>11}")
        for network in args.networks:
            whole: tuple[float, float, float] | None = None
            for name in ("full", "intrr"):
                result = measure_training(name, network, world, args)
                whole = whole or result
                print(
                    f"{network + ' ' + name:20}{result[0]:12,.0f}{result[0] / whole[0]:7.2f}x{result[1]:9.3f}"
                    f"{result[1] / whole[1]:9.0%}{result[2]:11.3f}",
                    flush=True,
                )
                clean(device)


def parts_table(device: str, args: argparse.Namespace) -> None:
    for world in worlds(device, args):
        print(f"\nparts of intrr, {device}, {world.name}, {args.windows} samples, ms, eager")
        print(f"{'':20}{'items':>9}{'backbone':>10}{'targets':>9}{'RAN share':>11}")
        for network in args.networks:
            items, backbone, targets = measure_parts(network, world, args)
            print(
                f"{network:20}{items * 1e3:9.2f}{backbone * 1e3:10.2f}{targets * 1e3:9.2f}"
                f"{(items + targets) / (items + backbone + targets):11.0%}",
                flush=True,
            )
            clean(device)


def latency_table(device: str, args: argparse.Namespace) -> None:
    rows = (("full SAC, 32 items", "full", 32), ("full SSL, 8 items", "full", 8), ("intrr, 32 items", "intrr", 32))
    for network, windows in itertools.product(args.networks, args.batches):
        print(f"\nlatency, {device}, {network}, {windows} histories, ms a batch by beam")
        print(f"{'':20}" + "".join(f"{beam:>9}" for beam in args.beams))
        for label, name, length in rows:
            world = synthetic(args, device, length)
            cells = [measure_latency(name, network, world, windows, beam, args) for beam in args.beams]
            print(f"{label:20}" + "".join(f"{seconds * 1e3:9.2f}" for seconds in cells), flush=True)
            clean(device)


def worlds(device: str, args: argparse.Namespace) -> list[World]:
    """Return the worlds that can be made here, and print which one is missing."""
    found = [synthetic(args, device, 30)]
    if Path("data/splits/splits.json").exists() and Path("data/sids/sids.parquet").exists():
        return [*found, beauty(device)]
    print("\nBeauty: missing, data/splits and data/sids are not here")
    return found


def clean(device: str) -> None:
    """Forget the last model, its graphs and its peak of memory."""
    torch.compiler.reset()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def picture() -> None:
    """Two items with the same Semantic ID but the digit, those that differ most, as bars of what they made of it."""
    from pipeline.evaluate.explain import code_weights
    from pipeline.generator import load_generator

    loaded = load_generator(Path("models/generator"))
    codes_IL = loaded.catalogue.codes_IL.numpy()
    order = np.lexsort(codes_IL.T[::-1])
    mates = order[:-1][same := (codes_IL[order[:-1], :-1] == codes_IL[order[1:], :-1]).all(1)], order[1:][same]
    rows = [code_weights(loaded, items) or [] for items in mates]  # there are some: the model is intrr's
    apart = [
        sum(np.abs(np.subtract(a, b)).sum() for a, b in zip(one.weights[:-1], other.weights[:-1], strict=True))
        for one, other in zip(*rows, strict=True)
    ]
    for row in (rows[0][int(np.argmax(apart))], rows[1][int(np.argmax(apart))]):
        print(f"\n{row.item}  {row.title}\nSemantic ID {row.codes}")
        for level, (code, weights) in enumerate(zip(row.codes, row.weights, strict=True), 1):
            for best in np.argsort(weights)[::-1][:5]:
                result = "  <- its Semantic ID" if best == code else ""
                print(f"  level {level}  {best:4}  {weights[best]:5.2f}  {'#' * round(40 * weights[best])}{result}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default="train,parts,latency", help="train, parts, latency, picture")
    parser.add_argument("--devices", default="cpu,cuda")
    parser.add_argument("--networks", default="decoder,hstu", help="decoder, hstu, t5")
    parser.add_argument("--windows", type=int, default=512, help="samples of a training step; the paper's 512")
    parser.add_argument("--batches", default="8,256", help="histories of a latency row")
    parser.add_argument("--beams", default="10,15,20,25,30,50")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--items", type=int, default=12_101, help="of the synthetic catalogue; Beauty's 12,101")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    args.networks = args.networks.split(",")
    args.batches, args.beams = ([int(number) for number in text.split(",")] for text in (args.batches, args.beams))
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}"
    )
    tables = {"train": training_table, "parts": parts_table, "latency": latency_table}
    for table, device in itertools.product(args.tables.split(","), args.devices.split(",")):
        if table == "picture":
            picture()
            return
        if device == "cuda" and not torch.cuda.is_available():
            print(f"\n{table}, {device}: missing, no GPU here")
            continue
        tables[table](device, args)


if __name__ == "__main__":
    main()
