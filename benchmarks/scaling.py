"""Measure what more GPUs bring to training, evaluation and text encoding: every arm on one GPU and on N, in one run.

    python -m benchmarks.scaling --gpus 2 --commit ID --raw docs/results/raw.jsonl     # all arms, about 4 minutes
    python -m benchmarks.scaling --gpus 2 --only encode,evaluate
    python -m benchmarks.scaling --gpus 2 --tiny --device cpu                          # a check of this file

Each arm is a process group of its own, started by torchrun, and its row is appended as it ends. The arms of one GPU run
side by side, one on each GPU. Reads data/splits and data/sids (`--data`); the network is that of
presets/beauty-fast.yaml with its first weights, because the cost of a step or a search does not depend on what the
weights are.

train: optimizer steps of the real loader after `WARM` steps, all positions of a step divided by the GPUs. Rows `fixed a
GPU` give every GPU as many positions as the one has, rows `fixed in all` as many to all of them together. evaluate: the
test users at beam 50, ranked a second time, when the search is recorded; gathering included. encode: texts of Amazon
Beauty's lengths by an encoder of Flan-T5-XL's shape with random weights (benchmarks/encoders.py), in shards of
`SHARD_ITEMS` that the processes divide; writing and gathering the shards included. profile: where the time of 20
training steps goes on each GPU, from a process group of its own: a rank waits while an exchange of gradients runs and
no other kernel does. Times are those of the slowest process: all begin together, and end when the last one has.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml

from pipeline.artifacts import Splits
from pipeline.config import Params, build_params
from pipeline.decoding.ranking import Ranker
from pipeline.distributed import World, joined
from pipeline.machine import make_repeatable, pick_device, wait_for
from pipeline.training.assembly import trainer_of
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.loop import Trainer
from pipeline.training.names import read_names
from pipeline.training.recipe import TrainingRecipe

ROOT = Path(__file__).resolve().parents[1]
POSITIONS = (17_600, 160_000)  # of a step, on one GPU
WARM = 24  # steps before the clock starts: they compile, and record the usual shapes
PROFILED = 20  # steps
SHARD_ITEMS = 512
TINY_MODEL = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16, "heads": 2, "d_head": 8, "d_ff": 32}


def main() -> None:
    """Run one arm in this process, or all arms in others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--only", default="train,evaluate,encode,profile", help="what to measure")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of splits/ and sids/")
    parser.add_argument("--raw", type=Path, default=Path("scaling.jsonl"), help="JSON lines; rows are appended")
    parser.add_argument("--commit", default="")
    parser.add_argument("--seconds", type=float, default=3600.0, help="begin no arm after so many")
    parser.add_argument("--most", type=float, default=180.0, help="seconds after which an arm has failed")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a small network and few steps")
    parser.add_argument("--run", default=str(int(time.time())), help="a name that all rows of a run have")
    parser.add_argument("--arm", default="", help="for the processes that this script starts: what they measure")
    parser.add_argument("--positions", type=int, default=0, help="with --arm train or profile: of a step, in all")
    args = parser.parse_args()
    if args.arm:
        measure(args)
    else:
        sys.exit(run_all(args))


def arms(args: argparse.Namespace) -> Iterator[tuple[int, str, int]]:
    """Give (GPUs, what is measured, positions of a step): first those of one GPU, then those of all GPUs."""
    steps = (400, 1600) if args.tiny else POSITIONS
    for gpus in dict.fromkeys((1, args.gpus)):
        for what in args.only.split(","):
            if what == "train":
                yield from ((gpus, what, positions * gpus) for positions in steps)
                yield from ((gpus, what, positions) for positions in steps if gpus > 1)
            elif what == "profile":
                yield from ((gpus, what, positions * gpus) for positions in steps if gpus > 1)
            else:
                yield gpus, what, 0


def run_all(args: argparse.Namespace) -> int:
    """Run every arm in its own process group, and return how many failed."""
    began = time.monotonic()
    waiting = list(arms(args))
    running: dict[subprocess.Popen[bytes], tuple[int, ...]] = {}
    deadlines: dict[subprocess.Popen[bytes], float] = {}
    failed = 0
    while waiting or running:
        for process in running:
            if time.monotonic() > deadlines[process]:
                print(f"an arm has not ended after {args.most:.0f} s", flush=True)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        for process in [process for process in running if process.poll() is not None]:
            failed += process.returncode != 0
            del running[process]
        busy = set(chain.from_iterable(running.values()))
        free = [gpu for gpu in range(args.gpus) if gpu not in busy]
        if waiting and len(free) >= waiting[0][0]:
            gpus, what, positions = waiting.pop(0)
            if time.monotonic() - began > args.seconds:
                print(f"left out: {what} on {gpus}, {positions:,} positions", flush=True)
                continue
            taken = tuple(free[:gpus])
            print(f"{time.monotonic() - began:4.0f} s: {what} on {gpus}, {positions:,} positions", flush=True)
            process = start(args, taken, what, positions)
            running[process], deadlines[process] = taken, time.monotonic() + args.most
        else:
            time.sleep(0.2)
    return failed


def start(args: argparse.Namespace, gpus: Sequence[int], what: str, positions: int) -> "subprocess.Popen[bytes]":
    """Start the process group of an arm on these GPUs."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = [seen[gpu] if len(seen) >= args.gpus else str(gpu) for gpu in gpus]
    given = ["--arm", what, "--positions", str(positions), "--data", str(args.data), "--raw", str(args.raw)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(len(gpus))]
    return subprocess.Popen(
        [
            *command,
            *("-m", "benchmarks.scaling", *given, "--commit", args.commit, "--device", args.device),
            *("--run", args.run, "--gpus", str(args.gpus)),
            *(["--tiny"] if args.tiny else []),
        ],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(names), "OMP_NUM_THREADS": "4"},
        start_new_session=True,
    )


def measure(args: argparse.Namespace) -> None:
    """Measure an arm in the processes that torchrun started; the first one appends the row."""
    device = pick_device(args.device)
    make_repeatable(device, deterministic=False)
    with joined(device) as world:
        figures = {"train": train, "profile": profile, "evaluate": evaluate, "encode": encode}[args.arm](
            args, world, device
        )
        if world.leads:
            per_gpu = args.positions // world.size
            sizes = {"positions": args.positions or None, "positions_a_gpu": per_gpu or None}
            row = {
                "kind": "gpus",
                "what": args.arm,
                "gpus": world.size,
                **sizes,
                **figures,
                "command": f"python -m benchmarks.scaling --gpus {args.gpus}",
                "commit": args.commit,
                "hardware": hardware(device, args.gpus),
                "run": args.run,
            }
            row["speedup"] = speedup(row, args.raw)
            with args.raw.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def speedup(row: dict[str, Any], raw: Path) -> float | None:
    """Return a row's rate over that of one GPU in the same run; None where there is none.

    The one GPU has as many positions a step as each GPU of the row, or, where there is no such row, as all together.
    """
    rows = [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else []
    alone = [one for one in rows if all(one.get(key) == row[key] for key in ("run", "what")) and one["gpus"] == 1]
    for key in ("positions_a_gpu", "positions"):
        for one in alone:
            if one["positions"] == row[key] and row["rate"] and one["rate"]:
                return float(round(row["rate"] / one["rate"], 3))
    return None


def hardware(device: torch.device, gpus: int) -> str:
    """Return the words for the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU process"
    return f"{gpus} x {name}, torch {torch.__version__.split('+')[0]}"


def params_of(args: argparse.Namespace, positions: int) -> Params:
    """Return the parameters of presets/beauty-fast.yaml, with so many positions a step."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in yaml.safe_load((ROOT / "presets/beauty-fast.yaml").read_text()).items():
        raw[section] = {**raw[section], **values} if isinstance(values, dict) else values
    raw["train"] |= {"max_windows": 10**9, "device": args.device, **({"batch_tokens": positions} if positions else {})}
    if args.tiny:
        raw["backbone"] |= TINY_MODEL
        raw["train"] |= {"compile": False}
        raw["evaluate"] |= {"beam": 10}
    return build_params(raw)


def trainer(args: argparse.Namespace, world: World, device: torch.device, folder: Path) -> Trainer:
    """Build what trains, with first weights."""
    params = params_of(args, args.positions)
    splits = Splits.read(args.data / "splits")
    names = read_names(params.backbone, splits, args.data / "sids", args.data / "embeddings")
    recipe = TrainingRecipe.of(params, splits, names.sids)
    checkpoints = Checkpoints(folder, "scaling")
    return trainer_of(recipe, splits, names, device, checkpoints=checkpoints, world=world, resume=None)


def together(world: World, device: torch.device) -> float:
    """Wait until every process has done its work, and return the time."""
    world.sum(torch.zeros(1, device=device)).item()
    wait_for(device)
    return time.perf_counter()


def stepping(made: Trainer) -> Callable[[int], int]:
    """Return what does a number of steps, and returns how many windows they had."""
    sampler = made.strategy.sampler
    steps = chain.from_iterable(
        made.loader.rest_of_epoch(epoch, 0, sampler.begin_epoch(epoch), sampler.select) for epoch in count()
    )

    def do(number: int) -> int:
        windows = 0
        for step, batches in islice(steps, number):
            made._train(step, batches)
            windows += len(step.windows)
        made._losses.clear()
        return windows

    return do


def train(args: argparse.Namespace, world: World, device: torch.device) -> dict[str, Any]:
    """Windows a second."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(args, world, device, Path(folder))
        do = stepping(made)
        began = together(world, device)
        do(2 if args.tiny else WARM)
        warm = together(world, device) - began
        # About six seconds of steps: the first ones say how many these are.
        few = 2 if args.tiny else 20
        began = together(world, device)
        do(few)
        each = (together(world, device) - began) / few
        steps = 3 if args.tiny else int(np.clip(6 / each, 60, 1000))
        steps = int(world.sum(torch.tensor([steps if world.leads else 0], device=device)))
        began = together(world, device)
        windows = do(steps)
        seconds = together(world, device) - began
        made.optimizer_step.forget()
    return {
        "rate": round(windows / seconds),
        "unit": "windows",
        "waiting": None,
        "ms_a_step": round(1000 * seconds / steps, 3),
        "steps": steps,
        "warm_seconds": round(warm, 1),
    }


def profile(args: argparse.Namespace, world: World, device: torch.device) -> dict[str, Any]:
    """Return what share of the time each process only waits for an exchange, and how long exchanges run at all."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(args, world, device, Path(folder))
        do = stepping(made)
        do(2 if args.tiny else WARM)
        together(world, device)
        activities = [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        began = together(world, device)
        with torch.profiler.profile(activities=activities or [torch.profiler.ProfilerActivity.CPU]) as seen:
            do(PROFILED)
            wait_for(device)
        seconds = time.perf_counter() - began
        made.optimizer_step.forget()
    spans = [
        (event.time_range.start, event.time_range.end, "nccl" in event.name.lower() or "gloo" in event.name.lower())
        for event in seen.events()
        if activities == [] or event.device_type == torch._C._autograd.DeviceType.CUDA
    ]
    alone, exchanging, whole = exposed(spans)
    found: list[Any] = [None] * world.size
    mine = (alone / whole, exchanging / whole)
    dist.all_gather_object(found, mine)
    return {
        "rate": None,
        "unit": "",
        "waiting": round(max(one[0] for one in found), 4),
        "waiting_share": [round(one[0], 4) for one in found],
        "exchanging_share": [round(one[1], 4) for one in found],
        "profiled_seconds": round(seconds, 2),
    }


def exposed(spans: Sequence[tuple[float, float, bool]]) -> tuple[float, float, float]:
    """Return how long exchanges run alone, how long they run, and the time from the first start to the last end.

    Args:
        spans: start, end and whether it is an exchange, of each kernel.
    """
    # Count what runs between two changes. (0, 4, kernel), (3, 9, exchange) -> alone 4 to 9: 5, exchanging 6, in all 9
    changes = sorted(
        [(start, 1, exchange) for start, _, exchange in spans] + [(end, -1, exchange) for _, end, exchange in spans],
        key=lambda change: change[0],
    )
    running = {True: 0, False: 0}
    alone = exchanging = 0.0
    before = changes[0][0]
    for at, change, exchange in changes:
        if running[True]:
            exchanging += at - before
            alone += 0.0 if running[False] else at - before
        running[exchange] += change
        before = at
    return alone, exchanging, max(changes[-1][0] - changes[0][0], 1e-9)


def evaluate(args: argparse.Namespace, world: World, device: torch.device) -> dict[str, Any]:
    """Users a second, of the test users at the beam width of the preset."""
    with tempfile.TemporaryDirectory() as folder:
        made = trainer(args, world, device, Path(folder))
        config = params_of(args, 0).evaluate
        splits = Splits.read(args.data / "splits")
        users_U, positions_U = splits.targets("test")
        share_S = world.share(np.diff(splits.history_index(positions_U)[1]))
        ranker = Ranker(
            made.validation.catalogue,
            splits,
            "test",
            beam=config.beam,
            decoding=config.decoding,
            batch_users=config.batch_users,
            users=users_U[share_S],
        )
        seconds = 0.0
        for _ in range(1 if args.tiny else 3):
            began = together(world, device)
            ranks_S = ranker.rank(made.evaluated).ranks_U
            world.gather(ranks_S, share_S, len(users_U), device)
            seconds = together(world, device) - began
    return {
        "rate": round(len(users_U) / seconds),
        "unit": "users",
        "waiting": None,
        "beam": config.beam,
        "users": len(users_U),
    }


@torch.inference_mode()
def encode(args: argparse.Namespace, world: World, device: torch.device) -> dict[str, Any]:
    """Items a second of the text encoder, from tokens to gathered vectors."""
    from benchmarks.encoder_models import t5_config, t5_texts
    from benchmarks.encoders import t5_pass, text_lengths
    from pipeline.embed.shards import Shards, Share
    from pipeline.embed.t5 import T5Encoder

    config = t5_config(1 if args.tiny else 24)
    with torch.device(device):
        torch.manual_seed(0)
        encoder = T5Encoder(config).to(torch.bfloat16).eval()
    lengths = np.sort(text_lengths(128))[::-1]
    lengths = lengths[-64:] if args.tiny else lengths
    texts = t5_texts(config, lengths)
    budget = 16_384
    for _ in t5_pass(encoder, texts[:: 64 if len(texts) > 64 else 8], budget, device):
        pass  # compiles, and warms the allocator up
    with tempfile.TemporaryDirectory() as own:
        folder: list[str] = [own]  # that of the first process serves all
        if world.size > 1:
            dist.broadcast_object_list(folder, src=0)
        shards = Shards(Path(folder[0]), "scaling", len(texts), 16 if args.tiny else SHARD_ITEMS, lengths)
        began = together(world, device)
        shards.fill(lambda span: t5_pass(encoder, texts[span], budget, device), Share(world.rank, world.size))
        seconds = together(world, device) - began
        shards.close()
    return {
        "rate": round(len(texts) / seconds, 1),
        "unit": "items",
        "waiting": None,
        "items": len(texts),
        "tokens": int(lengths.sum()),
        "shard_items": SHARD_ITEMS,
    }


if __name__ == "__main__":
    main()
