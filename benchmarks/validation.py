"""Time of one validation during training, in parts: loss and ranking; prints a table.

    python benchmarks/validation.py                    # the TIGER shape with random weights, users of data/splits
    python benchmarks/validation.py --profile          # also what the host and the GPU do in the last one

The first validation compiles kernels and records the search, so that each repeat has a row. Reads data/splits and
data/sids.
"""

import argparse
import time

import numpy as np
import torch
from defaults import default_params
from training import TIGER

from pipeline.artifacts import Sids, Splits
from pipeline.backbones import build_backbone
from pipeline.catalogue import Catalogue
from pipeline.distributed import World
from pipeline.machine import pick_device, wait_for
from pipeline.packing.backbone import Backbone, evaluating
from pipeline.strategies.base import Sampler, Strategy
from pipeline.strategies.registry import choose_strategies
from pipeline.training.validation import Validation


def measure(validation: Validation, model: Backbone) -> tuple[float, float, np.ndarray]:
    """Return the seconds of the loss (the first time, of compiling too) and of the ranking, and the ranks."""
    wait_for(validation.device)
    began = time.perf_counter()
    with evaluating(model):
        validation.compile_loss(model)
        validation._loss(model, validation.batches())
        between = time.perf_counter()
        ranks_U = validation._ranks(model, None)
    return between - began, time.perf_counter() - between, ranks_U


def profile(validation: Validation, model: Backbone) -> None:
    """Print the functions of the host and the kernels of the GPU that take most of one validation."""
    import cProfile
    import pstats

    from torch.profiler import ProfilerActivity, profile

    host = cProfile.Profile()
    host.runcall(measure, validation, model)
    pstats.Stats(host).sort_stats("tottime").print_stats(18)
    if validation.device.type != "cuda":
        return
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        measure(validation, model)
    events = sorted(record.key_averages(), key=lambda event: -event.self_device_time_total)
    print(f"kernels: {sum(event.self_device_time_total for event in events) / 1e6:.3f} s")
    for event in events[:24]:
        print(f"  {event.self_device_time_total / 1e3:9.1f} ms {event.count:6} calls  {event.key[:100]}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--beam", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    device = pick_device("auto")
    splits, sids = Splits.read(), Sids.read()
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    torch.manual_seed(0)
    model = build_backbone(TIGER, catalogue)
    strategy = Strategy(choose_strategies("full", default_params().strategies).network(), Sampler())
    validation = Validation(splits, strategy, catalogue, World(), beam=args.beam)
    print(f"{validation.windows:,} users, beam {args.beam}")
    print(f"{'repeat':>6}{'loss s':>9}{'ranks s':>9}")
    first_U = None
    for repeat in range(args.repeats):
        loss, ranks, ranks_U = measure(validation, model)
        first_U = ranks_U if first_U is None else first_U
        same = "" if np.array_equal(first_U, ranks_U) else "  other ranks than before"
        print(f"{repeat + 1:6}{loss:9.3f}{ranks:9.3f}{same}", flush=True)
    if args.profile:
        profile(validation, model)


if __name__ == "__main__":
    main()
