"""Decoding speed: users a second and milliseconds a batch, by batch size, beam and constraint; prints one table.

    python benchmarks/decoding.py                     # the TIGER shape with random weights, histories of data/splits
    python benchmarks/decoding.py --batches 8,256 --beams 10,50 --backbone decoder

Every number is the median of up to 12 batches of different users, end to end: ids of a history in host memory in,
ranked items in host memory out; nothing is reused between batches. On a GPU the search is a CUDA graph
(`beam_search.Search`), recorded before the clock starts. Reads data/splits and data/sids.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from training import TIGER

from pipeline.artifacts import Sids, Splits
from pipeline.backbones import build_backbone
from pipeline.catalogue import Catalogue
from pipeline.decoding.beam_search import Search
from pipeline.decoding.ranking import histories_of
from pipeline.machine import pick_device
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import slices
from pipeline.packing.shape import Shape

BATCHES = 12


def measure(
    model: Backbone,
    items: np.ndarray,
    offsets: np.ndarray,
    batch: int,
    beam: int,
    constrained: bool,
    precision: torch.dtype,
) -> float:
    """Median seconds of a batch."""
    device, lengths = model.catalogue.codes_IL.device, np.diff(offsets)
    count = min(BATCHES, len(lengths) // batch)
    rows = np.random.default_rng(0).permutation(len(lengths))[: batch * count].reshape(count, batch)
    shape = Shape.of([lengths[row] for row in rows], int(lengths.max())) if device.type == "cuda" else None
    search, seconds = Search(model, beam, constrained=constrained, shape=shape, longest=int(lengths.max())), []
    for number in range(-4, 3 * count):  # the first ones compile and record
        index, batch_offsets = slices(offsets[rows[number % count]], lengths[rows[number % count]])
        began = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            search(items[index], batch_offsets).items_WK.cpu()
        if number >= 0:
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,8,256,2048")
    parser.add_argument("--beams", default="10,30,50")
    parser.add_argument("--backbone", choices=("t5", "decoder"), default="t5")
    args = parser.parse_args()
    device = pick_device("auto")
    splits, sids = Splits.read(), Sids.read()
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    torch.manual_seed(0)
    model = build_backbone(replace(TIGER, name=args.backbone, recency_items=20), catalogue).eval()
    items, offsets = histories_of(splits, splits.targets("test")[1])
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{name}, torch {torch.__version__}, {args.backbone}, {catalogue.items:,} items, mean history "
        f"{np.diff(offsets).mean():.2f} items"
    )
    print(f"{'batch':>6}{'beam':>6}  {'':15}{'':10}{'ms':>9}{'users/s':>10}")
    for batch in map(int, args.batches.split(",")):
        for beam in map(int, args.beams.split(",")):
            for constrained in (True, False):
                for precision in (torch.float32, torch.bfloat16):
                    seconds = measure(model, items, offsets, batch, beam, constrained, precision)
                    print(
                        f"{batch:6}{beam:6}  {'constrained' if constrained else 'free':15}{str(precision)[6:]:10}"
                        f"{seconds * 1e3:9.2f}{batch / seconds:10,.0f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
