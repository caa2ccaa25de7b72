"""The training loop: passes, optimizer steps, validation, early stopping, checkpoints.

Everything random in a step follows from (seed, step, part), and the data from (seed, pass, place). So the state below
and the weights are all that a resumed run needs to go on as if nothing had happened.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch
from pipeline.progress import Progress
from pipeline.strategies.base import Strategy
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.config import TrainConfig
from pipeline.training.loader import BatchLoader
from pipeline.training.optimizer import Average, learning_rate, set_rate
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.steps import Step
from pipeline.training.validation import Validation

# Fields of `State` that have another name in a checkpoint, so that runs of older versions can be resumed.
SAVED_AS = {"epoch": "pass_index", "position": "place"}
REPORT_EVERY = 20  # steps between looks at the loss; each look waits for the GPU


@dataclass
class State:
    """Where training stands."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    position: int = 0  # windows of the pass that are done
    windows: int = 0  # trained, over all passes; those that a strategy skips are not among them
    samples: int = 0  # (history, target) pairs of those windows: as many, unless every item is a target
    tokens: int = 0  # encoder positions of those windows, padding not counted
    tokens_kept: int = 0  # those of them that the strategy left to the last block and the decoder
    loss_sum: float = 0.0  # since the last validation
    loss_samples: int = 0
    train_seconds: float = 0.0  # optimizer steps alone
    compile_seconds: float = 0.0  # the first steps on a GPU, which compile kernels and record
    wall_seconds: float = 0.0  # with those, validation and checkpoints
    history: list[dict[str, float]] = field(default_factory=list)  # one row per validation
    best_score: float = -math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best one

    def saved(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {SAVED_AS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "State":
        """The state that a checkpoint holds."""
        return cls(**{f.name: saved[SAVED_AS.get(f.name, f.name)] for f in fields(cls)})


class Trainer:
    """Trains `model` in place; `evaluated` is the model whose weights count (the average where `train.ema` is on).

    Args:
        resume: what an earlier run saved, None to start from nothing.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        *,
        model: Backbone,
        strategy: Strategy,
        loader: BatchLoader,
        validation: Validation,
        checkpoints: Checkpoints,
        world: World,
        resume: dict[str, Any] | None = None,
    ):
        self.config, self.seed, self.model, self.strategy, self.world = config, seed, model, strategy, world
        self.loader, self.validation, self.checkpoints = loader, validation, checkpoints
        self.device = loader.device
        self.average = Average(model, config.ema) if config.ema else None
        self.evaluated = self.average.model if self.average else model
        self.state = State()
        self.best: dict[str, Tensor] = {}
        # After the average has copied the plain model: on a GPU the optimizer step compiles this one.
        self.optimizer_step = OptimizerStep(config, model.train(), strategy, self.average)
        if resume:
            self._restore(resume)
        self._losses: list[tuple[int, int, Tensor]] = []  # (windows, samples, loss sum) of steps not yet looked at

    def run(self) -> State:
        """Train until `max_windows` are trained or skipped, or patience ends; `evaluated` then has the best weights.

        Raises:
            UserError: the loss is no longer a finite number, or a checkpoint cannot be written.
        """
        self._began, self._mark, self._warm = (now := time.perf_counter()), now, 0.0
        self._run()
        self.evaluated.load_state_dict(self.best)
        self.state.wall_seconds += time.perf_counter() - self._began
        return self.state

    def _run(self) -> None:
        state, sampler = self.state, self.strategy.sampler
        self._shown = self.windows_done
        progress = Progress("train", self.config.max_windows, "windows", start=self._shown)
        with progress if self.world.leads else nullcontext() as self._progress:
            while not self.finished:
                weigh, select = sampler.begin_epoch(state.epoch), sampler.select
                for step, batches in self.loader.rest_of_epoch(state.epoch, state.position, weigh, select):
                    self._train(step, batches)
                    self._after_step()
                    if self.finished:
                        break
                else:
                    state.epoch, state.position = state.epoch + 1, 0
            if not state.history or state.history[-1]["step"] != state.step:
                self._validate()

    @property
    def windows_done(self) -> int:
        """Windows trained or skipped: passes are what a strategy that skips must share with one that does not."""
        return self.state.epoch * len(self.loader.epochs) + self.state.position

    @property
    def finished(self) -> bool:
        return self.windows_done >= self.config.max_windows or self.state.stale >= self.config.patience

    def _train(self, step: Step, batches: list[Batch]) -> None:
        """One optimizer step. The loss is a sum over samples divided by a number that the whole step shares."""
        state, windows, samples = self.state, len(step.windows), self.loader.collator.samples(step)
        total = torch.zeros((), device=self.device)
        share = torch.full((), 1 / self.strategy.sampler.divisor(samples, step.selected), device=self.device)
        for i, batch in enumerate(batches):
            self._reseed(self.loader.process_parts[i])
            total += self.optimizer_step.gradients(batch, share)
        set_rate(self.optimizer_step.optimizer, learning_rate(self.config, state.step, self.windows_done))
        if self.average:
            self.average.set_weight(state.step)
        self.world.add_gradients(self.model)
        self.optimizer_step.update()
        self._losses.append((windows, samples, total))
        state.step, state.position, state.windows = state.step + 1, step.last, state.windows + windows
        state.samples += samples
        tokens, items_W, per_item = (
            step.tokens(self.loader.input_tokens_per_item),
            step.items_W,
            self.loader.input_tokens_per_item,
        )
        state.tokens += tokens
        pruned = int(items_W.sum()) * per_item - int(self.strategy.network.tokens_kept(items_W, per_item).sum())
        state.tokens_kept += tokens - pruned
        self.strategy.sampler.end_step(step.weights_W, tokens, step.selected)

    def _reseed(self, part: int) -> None:
        """Dropout of a part depends on nothing but (seed, step, part)."""
        words = np.random.SeedSequence([self.seed, self.state.step, part]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def _after_step(self) -> None:
        step, config = self.state.step, self.config
        validate, save = step % config.validate_every == 0, step % config.checkpoint_every == 0
        if validate or save or step % REPORT_EVERY == 0:
            self._look()
        if validate:
            self._validate()
        if save:
            self._save()

    def _look(self) -> None:
        """Fetch the losses of the steps since the last look, and stop when one is not finite."""
        if self._losses:
            sums = self.world.sum(torch.stack([loss for *_, loss in self._losses])).tolist()
            first = self.state.step - len(sums) + 1
            for number, (loss, (_, samples, _)) in enumerate(zip(sums, self._losses, strict=True), first):
                if not math.isfinite(loss):
                    raise _diverged(number, self.config)
                self.state.loss_sum += loss
                self.state.loss_samples += samples
            if self._progress:
                self._progress.update(self.windows_done - self._shown, f"loss {loss / samples:.3f}")
            self._shown = self.windows_done
            self._losses.clear()
        now, warm = time.perf_counter(), self.optimizer_step.warm_seconds
        self.state.train_seconds += now - self._mark - (warm - self._warm)
        self.state.compile_seconds += warm - self._warm
        self._mark, self._warm = now, warm

    def _validate(self) -> None:
        """Add a row to the history, and keep these weights if they are the best so far."""
        self._look()
        state = self.state
        scores = self.validation.measure(self.evaluated)
        if not math.isfinite(scores["valid_loss"]):
            raise _diverged(state.step, self.config)
        train_loss = state.loss_sum / state.loss_samples
        state.history.append({"step": state.step, "windows": state.windows, "train_loss": train_loss, **scores})
        state.loss_sum, state.loss_samples, state.stale = 0.0, 0, state.stale + 1
        score = -scores["valid_loss"] if self.config.select == "loss" else scores[self.config.select]
        if score > state.best_score:
            state.best_score, state.best_step, state.stale = score, state.step, 0
            self.best = {name: value.clone() for name, value in self.evaluated.state_dict().items()}
        if self.world.leads:
            print("train: " + validation_line(state.history[-1]) + (" (best)" if state.stale == 0 else ""), flush=True)
        self._mark = time.perf_counter()

    def _save(self) -> None:
        now = time.perf_counter()
        self.state.wall_seconds, self._began = self.state.wall_seconds + now - self._began, now
        strategy = self.strategy.sampler.state_dict()
        if self.world.leads:
            self.checkpoints.save(
                {
                    "state": self.state.saved(),
                    "model": self.model.state_dict(),
                    "best": self.best,
                    "average": self.average.model.state_dict() if self.average else {},
                    "optimizer": self.optimizer_step.optimizer.state_dict(),
                    "strategy": strategy,
                    "threads": torch.get_num_threads(),
                }
            )
        self._mark = time.perf_counter()

    def _restore(self, saved: dict[str, Any]) -> None:
        self.state, self.best = State.restored(saved["state"]), saved["best"]
        self.model.load_state_dict(saved["model"])
        self.optimizer_step.optimizer.load_state_dict(saved["optimizer"])
        self.strategy.sampler.load_state_dict(saved["strategy"])
        if self.average:
            self.average.model.load_state_dict(saved["average"])


def validation_line(row: dict[str, float]) -> str:
    """`step 200: 31,402 windows, train_loss 12.1033, valid_loss 11.9021, recall_at_10 0.0213`"""
    return (
        f"step {row['step']}: {row['windows']:,} windows, train_loss {row['train_loss']:.4f}, "
        f"valid_loss {row['valid_loss']:.4f}, recall_at_10 {row['recall_at_10']:.4f}"
    )


def _diverged(step: int, config: TrainConfig) -> UserError:
    return UserError(
        f"the loss is not a finite number any more at step {step}",
        "the weights grew without bound and cannot recover; nothing was written",
        f"set train.learning_rate below {config.learning_rate:g}, train.clip_norm to 1.0, or some train.warmup_steps",
    )
