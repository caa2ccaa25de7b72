"""Train a network: epochs, optimizer steps, validation, early stopping, checkpoints.

Everything random in a step follows from (seed, step, part), and the data from (seed, epoch, position). So the state
below and the weights are all that a resumed run needs to go on as if nothing had happened.

Shape legend: W windows of a step.
"""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.distributed import World
from pipeline.errors import UserError
from pipeline.packing.backbone import Backbone
from pipeline.packing.batch import Batch
from pipeline.printing import say
from pipeline.progress import Progress
from pipeline.stopping import Stopped, deferred, requested
from pipeline.strategies.base import Strategy
from pipeline.training.action_validation import ActionValidation
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.config import TrainConfig
from pipeline.training.loader import BatchLoader
from pipeline.training.optimizer import Average, learning_rate, set_rate
from pipeline.training.optimizer_step import OptimizerStep
from pipeline.training.steps import Step
from pipeline.training.validation import Validation
from pipeline.training.validation_times import ValidationTimes
from pipeline.training.words import StageWords

if TYPE_CHECKING:
    from pipeline.training.observer import Observer

# Fields of `State` that have another name in a checkpoint, so that runs of older versions can be resumed.
SAVED_AS = {"epoch": "pass_index", "position": "place"}
REPORT_EVERY = 20  # steps between looks at the loss; each look waits for the GPU


@dataclass(kw_only=True)
class State:
    """The state of a run counts what was done and remembers the best weights' score."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    position: int = 0  # windows of the epoch that are done
    windows: int = 0  # windows trained, over all epochs; those that a strategy skips are not counted
    samples: int = (
        0  # (history, target) pairs of the trained windows: equal to `windows`, unless every item is a target
    )
    tokens: int = 0  # encoder positions of the trained windows, padding not counted
    tokens_kept: int = 0  # encoder positions that pruning leaves to the last block and the decoder
    loss_sum: float = 0.0  # since the last validation
    loss_samples: int = 0  # samples behind loss_sum
    train_seconds: float = 0.0  # optimizer steps alone
    compile_seconds: float = 0.0  # the first steps on a GPU, which compile kernels and record
    valid_seconds: float = 0.0  # validation
    wall_seconds: float = 0.0  # all of the run: steps, compilation, validation and checkpoints
    history: list[dict[str, float]] = field(default_factory=list)  # one row per validation
    best_score: float = -math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best one
    validated: int = 0  # cost of the training until the last validation, as `ValidationTimes` counts it
    start: float = 0.0  # when the run first started, in seconds since 1970
    times: list[float] = field(default_factory=list)  # when each row of the history was measured, likewise

    def saved(self) -> dict[str, Any]:
        """Return the state as a checkpoint holds it."""
        return {SAVED_AS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> "State":
        """Return the state that a checkpoint holds."""
        names = {f.name: SAVED_AS.get(f.name, f.name) for f in fields(cls)}
        return cls(**{name: saved[old] for name, old in names.items() if old in saved})


class Trainer:
    """Train `model` in place. `evaluated` has the weights that count: the average where `train.ema` is on."""

    def __init__(  # noqa: PLR0913 - all but two by keyword
        self,
        config: TrainConfig,
        seed: int,
        *,
        model: Backbone,
        strategy: Strategy,
        loader: BatchLoader,
        validation: Validation | ActionValidation,
        checkpoints: Checkpoints,
        world: World,
        words: StageWords,
    ):
        self.config = config
        self.words = words
        self.seed = seed
        self.model = model
        self.strategy = strategy
        self.loader = loader
        self.validation = validation
        self.checkpoints = checkpoints
        self.world = world
        self.device = loader.device
        self.average = Average(model, config.ema) if config.ema else None
        self.evaluated = self.average.model if self.average else model
        self.state = State()
        self.best: dict[str, Tensor] = {}
        # After the average has copied the plain model: on a GPU the optimizer step compiles this one.
        self.optimizer_step = OptimizerStep(config, model.train(), strategy, self.average, world)
        self.validation_times = ValidationTimes(
            every=config.validate_every,
            by_windows=config.validate_in == "windows",
            users=validation.windows,
            positions=validation.items * loader.input_tokens_per_item,
            levels=len(strategy.network.target_widths(validation.catalogue)),
            beam=config.beam if config.task == "retrieval" else 0,
        )
        self.observer: Observer | None = None
        self._losses: list[tuple[int, Tensor]] = []  # (samples, loss sum) of steps that `_look` has not yet fetched
        self._windows_before = 0  # trained or skipped, before the last step
        self._told = False  # whether any of the processes was told to stop, as `_look` found

    def restore(self, saved: dict[str, Any]) -> None:
        """Go on from what a checkpoint of an interrupted run holds."""
        self.state = State.restored(saved["state"])
        self.best = saved["best"]
        self.model.load_state_dict(saved["model"])
        self.optimizer_step.optimizer.load_state_dict(saved["optimizer"])
        self.strategy.sampler.load_state_dict(saved["strategy"])
        if self.average:
            self.average.model.load_state_dict(saved["average"])

    def run(self) -> State:
        """Train until `max_windows` are trained or skipped, or patience ends; `evaluated` then has the best weights.

        Raises:
            UserError: the loss is no longer a finite number, or a checkpoint cannot be written.
            Stopped: a signal came; the checkpoint of the last finished step is saved.
        """
        # Two clocks: `_began` counts into wall_seconds, `_mark` into train_seconds. `_warm`: compile seconds counted.
        self._began = time.perf_counter()
        self._mark = self._began
        self._warm = 0.0
        self.state.start = self.state.start or round(time.time(), 6)
        if self.observer:
            self.observer.begin(self.checkpoints.folder.name, self.state.start)
        try:
            with deferred():
                self._run()
        finally:
            self.optimizer_step.forget()
        self.evaluated.load_state_dict(self.best)
        self.state.wall_seconds += time.perf_counter() - self._began
        return self.state

    def _run(self) -> None:
        state = self.state
        sampler = self.strategy.sampler
        self._shown = self.windows_done  # windows that the progress line has seen
        progress = Progress(self.words.stage, self.config.max_windows, "windows", start=self._shown)
        progress.pauses(self._validations_left, "validation")
        with progress if self.world.leads else nullcontext() as self._progress:
            while not self.finished:
                # An epoch from `position` on: 0, or where a resumed run stopped.
                self.loader.draw_ahead(state.epoch)
                weigh = sampler.begin_epoch(state.epoch)
                for step, batches in self.loader.rest_of_epoch(state.epoch, state.position, weigh, sampler.select):
                    self._train(step, batches)
                    self._after_step()
                    if self.finished:
                        break
                else:
                    state.epoch += 1
                    state.position = 0
            # The last weights are measured too, unless the last step was a validation's.
            if not state.history or state.history[-1]["step"] != state.step:
                self._validate()

    @property
    def windows_done(self) -> int:
        """Return how many windows were trained or skipped, so that skipping does not change the number of epochs."""
        return self.state.epoch * len(self.loader.epochs) + self.state.position

    def _validations_left(self) -> int:
        """Return how many validations are to come if patience does not end the run, by the mean size of a step."""
        step = self.state.step
        last = step * self.config.max_windows / max(self.windows_done, 1)
        if self.config.validate_in == "windows":
            step = self.windows_done
            last = self.config.max_windows
        return self.validation_times.left(step, last, self._cost, self._cost - self.state.validated)

    @property
    def _cost(self) -> int:
        """Return the cost of all training until now, as `ValidationTimes` counts it."""
        pad_to = self.loader.collator.pad_to
        positions = self.state.windows * pad_to if pad_to else self.state.tokens
        return self.validation_times.trained(positions, self.state.windows)

    @property
    def finished(self) -> bool:
        """Return whether `max_windows` are done, or `patience` validations went by without a better score."""
        return self.windows_done >= self.config.max_windows or self.state.stale >= self.config.patience

    def _train(self, step: Step, batches: list[Batch]) -> None:
        """Do one optimizer step. The loss is a sum over samples, divided by a number that the whole step shares."""
        # 1. Gradients of this process's parts, and during the last part's pass those of the other processes, added up.
        # A step of 89 windows: each sample counts 1 / 89.
        samples = self.loader.collator.samples(step)
        total = torch.zeros((), device=self.device)
        share = torch.full((), 1 / self.strategy.sampler.divisor(samples, step.selected), device=self.device)
        for i, batch in enumerate(batches):
            self._reseed(self.loader.process_parts[i])
            total += self.optimizer_step.gradients(batch, share, last=i + 1 == len(batches))
        # 2. The update.
        set_rate(self.optimizer_step.optimizer, learning_rate(self.config, self.state.step, self.windows_done))
        if self.average:
            self.average.set_weight(self.state.step)
        self.optimizer_step.update()
        # 3. Counts. The loss stays on the device: fetching it would wait for the GPU.
        self._losses.append((samples, total))
        self._count(step, samples)

    def _count(self, step: Step, samples: int) -> None:
        """Add a step to the counts of the state, and hand the step to the sampler."""
        state = self.state
        self._windows_before = self.windows_done
        state.step += 1
        state.position = step.last
        state.windows += len(step.windows)
        state.samples += samples
        # Tokens that enter the encoder (skipped ones do not), and those that pruning takes out of it.
        # 10 items of 4 tokens, one item skipped, pruning to half: 36 enter, 18 are pruned, 18 are kept
        per_item = self.loader.input_tokens_per_item
        tokens = step.tokens(per_item)
        items_W = step.items_W
        pruned = int(items_W.sum()) * per_item - int(self.strategy.network.tokens_kept(items_W, per_item).sum())
        state.tokens += tokens
        state.tokens_kept += tokens - pruned
        self.strategy.sampler.end_step(step.weights_W, tokens, step.selected)

    def _reseed(self, part: int) -> None:
        """Seed torch for a part, so that its dropout depends on nothing but (seed, step, part)."""
        words = np.random.SeedSequence([self.seed, self.state.step, part]).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0]))

    def _after_step(self) -> None:
        step = self.state.step
        windows = (self._windows_before, self.windows_done)
        validate = self.validation_times.due(step, self._cost - self.state.validated, windows)
        save = step % self.config.checkpoint_every == 0
        if validate or save or step % REPORT_EVERY == 0:
            self._look()
        if validate:
            self._validate()
        stop = requested() if self.world.size == 1 else self._told
        if stop and not save:
            self._look()  # so that the checkpoint has the losses of all its steps
        if stop or save:
            self._save()
        if stop:
            raise Stopped(f"the checkpoint of step {step} is saved, and training goes on from it")

    def _look(self) -> None:
        """Fetch the losses of the steps since the last look, and stop when one is not finite."""
        if self._losses:
            # One exchange for all of them. After step 40, three losses are those of steps 38, 39 and 40. Several
            # processes also agree here whether to stop, because a checkpoint needs all of them after the same step.
            told = [self._losses[0][1].new_tensor(float(requested()))] if self.world.size > 1 else []
            sums = self.world.sum(torch.stack([loss for _, loss in self._losses] + told)).tolist()
            if told:
                self._told = sums.pop() > 0
            first = self.state.step - len(sums) + 1
            for number, (loss, (samples, _)) in enumerate(zip(sums, self._losses, strict=True), first):
                if not math.isfinite(loss):
                    raise _diverged(number, self.config, self.words)
                self.state.loss_sum += loss
                self.state.loss_samples += samples
            if self._progress:
                self._progress.update(self.windows_done - self._shown, f"loss {loss / samples:.3f}")
            self._shown = self.windows_done
            self._losses.clear()
        # Seconds since the last look, without those that compiled or recorded: they are counted apart.
        now = time.perf_counter()
        warm = self.optimizer_step.warm_seconds
        self.state.train_seconds += now - self._mark - (warm - self._warm)
        self.state.compile_seconds += warm - self._warm
        self._mark = now
        self._warm = warm

    def _validate(self) -> None:
        """Add a row to the history, and save these weights in `best` if they are the best so far."""
        self._look()
        state = self.state
        with self._progress.pause() if self._progress else nullcontext():
            scores = self.validation.measure(self.evaluated)
        if not math.isfinite(scores["valid_loss"]):
            raise _diverged(state.step, self.config, self.words)
        train_loss = state.loss_sum / state.loss_samples
        state.history.append({"step": state.step, "windows": state.windows, "train_loss": train_loss, **scores})
        state.times.append(round(time.time(), 3))
        if self.observer:
            self.observer.point(state.history[-1], state.times[-1])
        state.loss_sum = 0.0
        state.loss_samples = 0
        state.stale += 1
        # A score is better when it is larger, so the loss counts with a minus.
        score = -scores["valid_loss"] if self.config.select == "loss" else scores[self.config.select]
        if score > state.best_score:
            state.best_score = score
            state.best_step = state.step
            state.stale = 0
            self.best = {name: value.clone() for name, value in self.evaluated.state_dict().items()}
        if self.world.leads:
            say(f"{self.words.stage}: " + validation_line(state.history[-1]) + (" (best)" if state.stale == 0 else ""))
        state.validated = self._cost
        now = time.perf_counter()
        state.valid_seconds += now - self._mark  # validation is not training
        self._mark = now

    def _save(self) -> None:
        """Write a checkpoint; only the first process does, though every process must give the sampler's state."""
        now = time.perf_counter()
        self.state.wall_seconds += now - self._began
        self._began = now
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


def validation_line(row: dict[str, float]) -> str:
    """Return `step 200: 31,402 windows, train_loss 12.1033, valid_loss 11.9021, recall_at_10 0.0213`."""
    scores = "".join(f", {name} {row[name]:.4f}" for name in ("recall_at_10", "auc") if name in row)
    return (
        f"step {row['step']}: {row['windows']:,} windows, train_loss {row['train_loss']:.4f}, "
        f"valid_loss {row['valid_loss']:.4f}{scores}"
    )


def _diverged(step: int, config: TrainConfig, words: StageWords) -> UserError:
    calmer = {"learning_rate": f" below {config.learning_rate:g}", "clip_norm": " to 1.0", "warmup_steps": " higher"}
    settings = [words.key(field) + value for field, value in calmer.items() if words.key(field)]
    return UserError(
        f"the loss is not a finite number any more at step {step}",
        "the weights grew without bound and cannot recover; nothing was written",
        f"set {' or '.join(settings)}",
    )
