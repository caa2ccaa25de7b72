"""Training speed beside stock parts, on the same windows, in one process; appends rows and prints a table.

    python benchmarks/stock.py --commit ID             # both parts: 417 and 4,096 windows a step
    python benchmarks/stock.py --commit ID --sizes 417 --arms ours,varlen

The arms, all of TIGER's shape, in bfloat16, with dropout 0.15 and Adam, compiled:
- ours: relative bias, and dropout on attention weights;
- varlen, flex, flex-bias: `PackedStock` of stock_models.py, by `torch.nn.attention.varlen_attn` or by FlexAttention,
  `torch.compile(mode="reduce-overhead")`, fused Adam. These parts do not drop attention weights; varlen_attn has no
  relative bias, FlexAttention has one in the arm flex-bias (of the encoder);
- transformers: its T5 by SDPA, windows grouped by length and padded to the longest of a group, `torch.compile` with one
  graph for all lengths, fused Adam.

Windows are those of `training.py` (GRID's sampler). All arms read the same 12 batches, which lie ready on the device. A
part holds all arms of one step size: the arms run by turns, `--repeats` times, without a profiler. A part whose rows
are in the file of rows is skipped. An arm of stock parts that raises has a row that says so. A loss that is not finite,
or has not fallen, ends the part with an error. Reads data/splits and data/sids.

Each arm compiles for half a minute to a minute. `--repeats 0` only compiles and writes no rows, so that several
processes can fill torch's cache at once before the measured run.
"""

import argparse
import itertools
import json
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from defaults import default_params, some
from stock_models import PackedInputs, PackedStock, PaddedStock, block_masks, packed_inputs, padded_inputs
from torch import Tensor
from training import LONGEST, PEAK, TIGER, forward_flops, grid_windows, steps

from pipeline.artifacts import Sids, Splits
from pipeline.catalogue import Catalogue
from pipeline.machine import pick_device, wait_for
from pipeline.strategies.base import Sampler, Strategy
from pipeline.strategies.registry import choose_strategies
from pipeline.training.collate import Collator, common_shape
from pipeline.training.config import TrainConfig
from pipeline.training.loader import MEASURED_STEPS
from pipeline.training.optimizer_step import OptimizerStep

if TYPE_CHECKING:
    from pipeline.packing.batch import Batch

ARMS = {
    "ours": "this engine",
    "varlen": "torch's varlen_attn: no relative bias, no dropout of attention weights",
    "flex": "FlexAttention: no relative bias, no dropout of attention weights",
    "flex-bias": "FlexAttention, num_stages 1: relative bias in the encoder, no dropout of attention weights",
    "transformers": "transformers' T5, SDPA, grouped by length",
}
GROUPS = {417: 3, 4096: 8}  # of transformers' T5: groups of one step, all of one number of windows
BATCHES = 12
RATE = 1e-3  # of Adam
Row = dict[str, Any]
Train = Callable[[], Tensor]  # does one step, returns its loss per window


@dataclass(kw_only=True)
class Arm:
    """One row of a part: how to do a step, and what was measured."""

    name: str
    train: Train
    warm_seconds: float
    memory_gib: float
    first_loss: float  # per window, over the first epoch over the batches
    rates: list[float]
    last_loss: float = 0.0  # over the last one


class Data:
    """The batches of a part, on the device."""

    def __init__(self, splits: Splits, catalogue: Catalogue, size: int):
        self.catalogue, self.size = catalogue, size
        self.device = catalogue.codes_IL.device
        windows = grid_windows(splits)
        collate = Collator(np.asarray(splits.items_N), catalogue.codes_IL, longest=LONGEST)
        # One shape for all batches, also for the stock parts: windows of weight zero fill them.
        shape = common_shape(itertools.islice(steps(windows, size), MEASURED_STEPS), 1, LONGEST)
        drawn = list(itertools.islice(steps(windows, size), BATCHES))
        self.batches = [collate(step, np.arange(size), shape=shape) for step in drawn]
        self.lengths = np.concatenate([step.windows.lengths_W for step in drawn])
        widths = catalogue.widths
        self.first_token = [sum(widths[:level]) for level in range(len(widths))]
        tokens_IL = catalogue.codes_IL + torch.tensor(self.first_token, device=self.device)
        self.tokens_IS = torch.cat([tokens_IL, torch.full_like(tokens_IL[:, :1], sum(widths))], 1)

    def packed(self, flex: bool) -> list[PackedInputs]:
        start = sum(self.catalogue.widths) + 1
        return [packed_inputs(batch, self.tokens_IS, [*self.first_token, start], flex) for batch in self.batches]


def ours(data: Data) -> Train:
    """This engine, as training uses it."""
    network = choose_strategies("full", default_params().strategies).network()
    config = some(TrainConfig, optimizer="adam", learning_rate=RATE)
    model = network.build(TIGER, data.catalogue).train()
    optimizer_step = OptimizerStep(config, model, Strategy(network, Sampler()))
    share = torch.full((), 1 / data.size, device=data.device)
    batches: itertools.cycle[Batch] = itertools.cycle(data.batches)

    def train() -> Tensor:
        loss = optimizer_step.gradients(next(batches), share)
        optimizer_step.update()
        return loss * share

    return train


def packed(data: Data, flex: bool, bias: bool) -> Train:
    """The network of torch's parts."""
    model = PackedStock(
        TIGER, data.catalogue.widths, longest=LONGEST * data.tokens_IS.shape[1], flex=flex, bias=bias
    ).to(data.device)
    optimizer = _adam(model)
    ready = data.packed(flex)
    # Masks are compiled with the tensors that they read: there each batch is copied into one set of tensors.
    static = _copied(ready[0])
    masks = block_masks(static) if flex else None
    batches = itertools.cycle(ready)
    compiled: Any = torch.compile(model, mode="reduce-overhead", dynamic=False)

    def train() -> Tensor:
        inputs = next(batches)
        if flex:
            for target, source in zip(_tensors(static), _tensors(inputs), strict=True):
                target.copy_(source)
            inputs = static
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(data.device.type, torch.bfloat16):
            loss: Tensor = compiled(inputs, masks)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()  # a recording overwrites it

    return train


def transformers(data: Data) -> Train:
    """transformers' T5, one pass per group of windows of near lengths."""
    model = PaddedStock(TIGER, data.catalogue.widths).to(data.device).train()
    optimizer = _adam(model)
    groups = GROUPS.get(data.size, 1)
    ready = [padded_inputs(inputs, groups) for inputs in data.packed(False)]
    for inputs in itertools.chain(*ready):  # one compilation serves all lengths
        for tensor in (inputs.tokens_WP, inputs.real_WP):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)
    batches = itertools.cycle(ready)
    compiled: Any = torch.compile(model)

    def train() -> Tensor:
        total = torch.zeros((), device=data.device)
        for inputs in next(batches):
            with torch.autocast(data.device.type, torch.bfloat16):
                loss = compiled(inputs) / data.size
            torch.autograd.backward(loss)
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return train


def _adam(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=RATE, fused=True)


def _tensors(inputs: PackedInputs) -> list[Tensor]:
    values = [getattr(inputs, field.name) for field in fields(inputs)]
    return [tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,))]


def _copied(inputs: PackedInputs) -> PackedInputs:
    values = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
    return PackedInputs(
        **{name: tuple(map(torch.clone, v)) if isinstance(v, tuple) else v.clone() for name, v in values.items()}
    )


BUILD: dict[str, Callable[[Data], Train]] = {
    "ours": ours,
    "varlen": lambda data: packed(data, False, False),
    "flex": lambda data: packed(data, True, False),
    "flex-bias": lambda data: packed(data, True, True),
    "transformers": transformers,
}


def warm(name: str, data: Data) -> Arm:
    """Build an arm, and let it compile and record."""
    cuda = data.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    began = time.perf_counter()
    train = BUILD[name](data)
    losses = [float(train()) for _ in range(BATCHES)]
    wait_for(data.device)
    memory = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else 0.0
    return Arm(
        name=name,
        train=train,
        warm_seconds=time.perf_counter() - began,
        memory_gib=memory,
        first_loss=float(np.mean(losses)),
        rates=[],
    )


def _warm_all(data: Data, names: list[str], say: Callable[[str], None]) -> tuple[list[Arm], list[Row]]:
    """Return the arms that run, and rows of those that do not."""
    arms: list[Arm] = []
    failed: list[Row] = []
    for name in names:
        try:
            arms.append(warm(name, data))
        except Exception as error:  # a part of torch may not run here, and that is a result
            if name == "ours":
                raise
            lines = [line for line in str(error).splitlines() if line.strip()]
            reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]
            say(f"{data.size} a step: {name} does not run: {reason}")
            failed.append({**_key(name, data.size), "row": f"{ARMS[name]} (does not run)", "failed": reason})
            continue
        say(f"{data.size} a step: {name} is warm after {arms[-1].warm_seconds:.0f} s, loss {arms[-1].first_loss:.3f}")
    return arms, failed


def run_part(data: Data, names: list[str], repeats: int, count: int, say: Callable[[str], None]) -> list[Row]:
    """Measure all arms of one step size by turns.

    Raises:
        RuntimeError: an arm's loss is not finite, or has not fallen.
    """
    arms, failed = _warm_all(data, names, say)
    if not repeats:
        return []
    for repeat in range(repeats):
        for arm in arms:
            wait_for(data.device)
            began = time.perf_counter()
            losses = [arm.train() for _ in range(count)]
            wait_for(data.device)
            arm.rates.append(data.size * count / (time.perf_counter() - began))
            arm.last_loss = float(torch.stack(losses[-BATCHES:]).mean())
            say(f"{data.size} a step, repeat {repeat + 1}: {arm.name:13} {arm.rates[-1]:10,.0f} windows/s")
    for arm in arms:
        if not (np.isfinite([arm.first_loss, arm.last_loss]).all() and arm.last_loss < arm.first_loss):
            raise RuntimeError(f"{arm.name}: the loss went from {arm.first_loss:.4f} to {arm.last_loss:.4f}")
    flops = 3 * forward_flops(TIGER, data.catalogue.widths, data.lengths)
    return [_row(arm, data.size, count, flops) for arm in arms] + failed


def _key(name: str, size: int) -> Row:
    """Return the keys that every row has; figures stay None where an arm does not run."""
    figures = ("windows_per_second", "low", "high", "share_of_peak", "peak_memory_gib", "first_loss", "last_loss")
    return {"kind": "stock speed", "size": size, "arm": name, "row": ARMS[name], **dict.fromkeys(figures)}


def _row(arm: Arm, size: int, count: int, flops: float) -> Row:
    median = float(np.median(arm.rates))
    return {
        **_key(arm.name, size),
        "windows_per_second": round(median),
        "low": round(min(arm.rates)),
        "high": round(max(arm.rates)),
        "repeats": len(arm.rates),
        "steps": count,
        "share_of_peak": round(median * flops / PEAK, 4),
        "peak_memory_gib": round(arm.memory_gib, 2),
        "warm_seconds": round(arm.warm_seconds, 1),
        "first_loss": round(arm.first_loss, 4),
        "last_loss": round(arm.last_loss, 4),
    }


def _there(raw: Path, size: int, names: list[str], commit: str) -> bool:
    """Tell whether the file has the rows of a part."""
    if not raw.exists():
        return False
    rows = [json.loads(line) for line in raw.read_text().splitlines()]
    measured = [row for row in rows if row.get("kind") == "stock speed"]
    return set(names) <= {row["arm"] for row in measured if (row["size"], row["commit"]) == (size, commit)}


def _head() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


def main() -> None:
    """Measure the parts that are missing, and append their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="417,4096", help="windows of a step; each is one part")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="of a repeat; 0: 120 small ones, or 30")
    parser.add_argument("--commit", default=_head(), help="of this tree; default: what git says")
    parser.add_argument("--raw", type=Path, default=Path("docs/results/raw.jsonl"))
    parser.add_argument("--log", type=Path, default=Path("docs/results/stock-h200.log"))
    args = parser.parse_args()
    names = args.arms.split(",")
    if unknown := set(names) - set(ARMS):
        parser.error(f"no arm is called {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    device = pick_device("auto")
    splits, sids = Splits.read(), Sids.read()
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    hardware = f"1 {torch.cuda.get_device_name()}" if device.type == "cuda" else "CPU"

    def say(line: str) -> None:
        print(line, flush=True)
        with args.log.open("a") as stream:
            stream.write(line + "\n")

    for size in map(int, args.sizes.split(",")):
        if _there(args.raw, size, names, args.commit):
            print(f"{size} a step: the rows are in {args.raw}")
            continue
        say(f"{hardware}, torch {torch.__version__}, commit {args.commit}, {size} windows a step")
        count = args.steps or (120 if size < 1000 else 30)
        rows = run_part(Data(splits, catalogue, size), names, args.repeats, count, say)
        origin = {
            "commit": args.commit,
            "hardware": f"{hardware}, torch {torch.__version__.split('+')[0]}",
            "command": f"python benchmarks/stock.py --sizes {size} --repeats {args.repeats} --steps {count}",
        }
        with args.raw.open("a") as stream:
            stream.writelines(json.dumps({**row, **origin}) + "\n" for row in rows)
        for row in (row for row in rows if row["low"] is not None):
            text = "{size:6} {windows_per_second:10,} ({low:,} to {high:,}) {peak_memory_gib:6.2f} GiB  {row}"
            say(text.format(**row))
        torch.compiler.reset()


if __name__ == "__main__":
    main()
