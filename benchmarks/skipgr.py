"""Measure what skipping saves: epochs of full and of skipgr over the same windows; prints one table.

    python benchmarks/skipgr.py                                  # GPU: the TIGER shape, whole passes
    python benchmarks/skipgr.py --small --windows 2000           # CPU: a small network, the first windows of a pass

Reads data/splits and data/sids, at best those of Amazon Beauty with split.max_history 30 and rkmeans-256x3. The first
pass scores every token, as in training; those up to the first that computes skipped targets again (one in
`rescore_every`) meet the new sizes of batches; the passes after them are timed, decisions and every step included.

Columns, of a timed pass. sequences, tokens: shares that are skipped, realised. windows, encoder, decoder, FLOPs: what
is computed, relative to full; FLOPs are the matrix products of the forward pass, counted over shapes. seconds;
speed-up: full's seconds / own. bookkeeping: decisions and journal, plus what entropies and their store add to a step
(measured on equal batches in which nothing is skipped), as a share of the pass.
"""

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from defaults import some
from training import TIGER

from pipeline.artifacts import Sids, Splits
from pipeline.backbones.config import BackboneConfig
from pipeline.catalogue import Catalogue
from pipeline.distributed import World
from pipeline.machine import pick_device, wait_for
from pipeline.strategies.base import Network, NetworkTraits, Sampler, Strategy, TrainingPlan
from pipeline.strategies.skipgr.config import SkipgrConfig
from pipeline.strategies.skipgr.strategy import SkippingSampler
from pipeline.training.collate import Collator
from pipeline.training.config import TrainConfig
from pipeline.training.loader import BatchLoader, StepBatches
from pipeline.training.optimizer_step import OptimizerStep, records
from pipeline.training.steps import Step, samples_per_step
from pipeline.training.windows import Epochs

SMALL = some(BackboneConfig, encoder_layers=2, decoder_layers=2, d_model=64, heads=4, d_head=16, d_ff=256)
WARM = 5  # passes: the first that scores all, and one that scores skipped targets again
BOTH = some(SkipgrConfig, apply_to="both")
WAYS: dict[str, SkipgrConfig | None] = {
    "full": None,
    "tokens, loss": some(SkipgrConfig, sequence_ratio=0.0),
    "tokens, loss and input": replace(BOTH, sequence_ratio=0.0),
    "sequences, r 0.3": some(SkipgrConfig, token_ratio=0.0),
    "both, r 0.3": BOTH,
    "both, 30% of sequences": replace(BOTH, sequence_share=0.3),
    "InfoBatch, r 0.5": some(SkipgrConfig, rule="loss", token_ratio=0.0, sequence_ratio=0.5, sequence_unit="window"),
    "random, 30% of sequences": replace(BOTH, rule="random", sequence_share=0.3),
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The figures of a timed epoch, on average."""

    seconds: float
    windows: float
    encoder: float  # tokens
    decoder: float  # positions
    flops: float
    sequences: float  # shares
    tokens: float
    bookkeeping: float  # share of the seconds


class Bench:
    """A strategy, its network and its batches, without the rest of training."""

    def __init__(
        self, config: SkipgrConfig | None, splits: Splits, catalogue: Catalogue, args: argparse.Namespace
    ) -> None:
        self.backbone = SMALL if args.small else TIGER
        self.args = args
        self.catalogue = catalogue
        self.train = some(TrainConfig, optimizer="adam", batch_tokens=args.batch_tokens, compile=not args.eager)
        self.device, self.per_item = catalogue.codes_IL.device, catalogue.levels + self.backbone.separators
        torch.manual_seed(0)
        network = Network()
        self.model: Any = network.build(self.backbone, catalogue).train()
        epochs, items_N = Epochs(splits, "random_start", 0), np.asarray(splits.items_N)
        self.loader = BatchLoader(
            epochs,
            Collator(items_N, catalogue.codes_IL, longest=splits.max_history),
            World(),
            budget=args.batch_tokens,
            input_tokens_per_item=self.per_item,
            fill=records(self.train, self.device),
        )
        self.share = samples_per_step(epochs, args.batch_tokens, self.per_item)
        plan = TrainingPlan(
            items_M=items_N,
            first_U=np.asarray(splits.offsets[:-1]),
            end_U=np.asarray(splits.train_end),
            windows=len(epochs),
            samples_per_step=self.share,
            epochs=1e9,
            one_per_target=True,
            all_targets=False,
            each_target_once=False,
            max_history=splits.max_history,
            seed=0,
            device=self.device,
            sum=World().sum,
        )
        traits = NetworkTraits.of(network, self.backbone, catalogue)
        self.sampler = SkippingSampler(config, plan, traits) if config else Sampler()
        self.strategy = Strategy(network, self.sampler)
        self.optimizer_step = OptimizerStep(self.train, self.model, self.strategy)

    def steps(self, number: int) -> Iterator[StepBatches]:
        """Yield the steps of an epoch, up to `--windows` of it."""
        weigh = self.sampler.begin_epoch(number)
        steps = self.loader.rest_of_epoch(number, 0, weigh, self.sampler.select)
        return itertools.takewhile(lambda pair: not self.args.windows or pair[0].last <= self.args.windows, steps)

    def run(self, number: int) -> list[Step]:
        """Train on a pass."""
        done = []
        for step, (batch,) in self.steps(number):
            share = torch.full((), 1 / self.sampler.divisor(len(step.windows), step.selected), device=self.device)
            self.optimizer_step.gradients(batch, share)
            self.optimizer_step.update()
            self.sampler.end_step(step.weights_W, step.tokens(self.per_item), step.selected)
            done.append(step)
        return done

    def measure(self) -> Measured:
        """Warm up, then time passes."""
        for number in range(WARM):
            self.run(number)
        before = self.sampler.report.figures().get("bookkeeping_seconds", 0.0)
        wait_for(self.device)
        began = time.perf_counter()
        epochs = [self.run(WARM + number) for number in range(self.args.epochs)]
        wait_for(self.device)
        seconds = time.perf_counter() - began
        decided = self.sampler.report.figures().get("bookkeeping_seconds", 0.0) - before
        steps = [step for done in epochs for step in done]
        count = self.args.epochs
        scoring = self.scoring_seconds() * len(steps)
        rows = self.sampler.report.tables(WARM + count, self.catalogue.levels)["passes"][WARM:]
        return Measured(
            seconds=seconds / count,
            windows=sum(len(step.windows) for step in steps) / count,
            encoder=sum(step.tokens(self.per_item) for step in steps) / count,
            decoder=sum(float(self.decoded(step).sum()) for step in steps) / count,
            flops=sum(self.flops(step) for step in steps) / count,
            sequences=float(np.mean([row["sequences_skipped"] for row in rows])),
            tokens=float(np.mean([row["tokens_skipped"] for row in rows])),
            bookkeeping=(decided + scoring) / seconds,
        )

    def scoring_seconds(self) -> float:
        """Return how much longer the strategy's loss takes than full's, on one batch in which nothing is skipped."""
        if type(self.sampler) is Sampler:
            return 0.0
        (_, (batch,)) = next(iter(self.steps(0)))
        share = torch.full((), 1 / self.share, device=self.device)

        def timed(strategy: Strategy) -> float:
            work = OptimizerStep(self.train, self.model, strategy).gradients
            for _ in range(4):
                work(batch, share)
            wait_for(self.device)
            began = time.perf_counter()
            for _ in range(self.args.repeats):
                work(batch, share)
            wait_for(self.device)
            repeats: int = self.args.repeats
            return (time.perf_counter() - began) / repeats

        return max(timed(self.strategy) - timed(Strategy(self.strategy.network, Sampler())), 0.0)

    def decoded(self, step: Step) -> np.ndarray:
        chosen = step.selected.decoded_W if step.selected else None
        return np.full(len(step.windows), self.catalogue.levels) if chosen is None else chosen

    def flops(self, step: Step) -> float:
        """Matrix products of the forward pass, 2 per multiply-add."""
        result = self.backbone
        d, inner = result.d_model, result.heads * result.d_head
        lengths_W = step.windows.lengths_W
        ff = 2 * d * result.d_ff + (result.ff_hidden_layers - 1) * result.d_ff**2
        kept_NS = step.selected.tokens_NS if step.selected else None
        tokens_W = (
            step.items_W * self.per_item
            if kept_NS is None
            else np.add.reduceat(kept_NS.sum(1), np.cumsum(lengths_W) - lengths_W)
        )
        positions_W = self.decoded(step)
        encoder = result.encoder_layers * (tokens_W * (4 * d * inner + ff) + 2 * inner * tokens_W**2)
        cross = tokens_W * 2 * d * inner + 2 * inner * positions_W * tokens_W
        decoder = result.decoder_layers * (positions_W * (6 * d * inner + ff) + 2 * inner * positions_W**2 + cross)
        return float(2 * (encoder + decoder + d * sum(self.catalogue.widths)).sum())


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", default=",".join(str(number) for number in range(len(WAYS))), help="rows, by number")
    parser.add_argument("--batch-tokens", type=int, help="else 142,000, with --small 8,192")
    parser.add_argument("--passes", type=int, default=4, help="timed ones")
    parser.add_argument("--windows", type=int, default=0, help="windows of an epoch; 0: all")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="a network for a CPU")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    args = parser.parse_args()
    args.batch_tokens = args.batch_tokens or (8_192 if args.small else 142_000)
    splits, sids = Splits.read(), Sids.read()
    device = pick_device("auto")
    catalogue = Catalogue(sids.codes_IL, sids.widths).to(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"torch {torch.__version__}, {name}\n{'':26}{'sequences':>10}{'tokens':>8}{'windows':>9}{'encoder':>9}"
        f"{'decoder':>9}{'FLOPs':>8}{'seconds':>9}{'speed-up':>10}{'bookkeeping':>13}"
    )
    full: Measured | None = None
    for number in sorted({0, *(int(text) for text in args.ways.split(","))}):
        way = list(WAYS)[number]
        result = Bench(WAYS[way], splits, catalogue, args).measure()
        full = full or result
        print(
            f"{way:26}{result.sequences:10.1%}{result.tokens:8.1%}{result.windows / full.windows:9.3f}"
            f"{result.encoder / full.encoder:9.3f}{result.decoder / full.decoder:9.3f}{result.flops / full.flops:8.3f}"
            f"{result.seconds:9.2f}{full.seconds / result.seconds:9.2f}x{result.bookkeeping:13.2%}",
            flush=True,
        )
        torch.compiler.reset()


if __name__ == "__main__":
    main()
