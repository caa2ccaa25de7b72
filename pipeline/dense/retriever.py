"""Train the dense retriever by the engine of pipeline/training, under one fixed recipe for all that has no key.

Every item of a user's sequence is a target, of the softmax over the catalogue (draws from a large one); AdamW without
decay, at a constant rate after `WARMUP` steps; validation chooses the best weights by recall@10.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.artifacts import Splits, fingerprint, write_json
from pipeline.backbones.config import BackboneConfig
from pipeline.decoding.item_index import INDEX, QUERIES, build_index, kind_of, states_of
from pipeline.decoding.ranking import histories_of
from pipeline.dense.config import DenseConfig
from pipeline.distributed import joined
from pipeline.generator import save_generator
from pipeline.machine import peak_memory_gib
from pipeline.manifest import sealed
from pipeline.metric_names import DENSE_REPORT
from pipeline.packing.backbone import evaluating
from pipeline.printing import say
from pipeline.training.assembly import set_up, trainer_of
from pipeline.training.checkpoint import Checkpoints
from pipeline.training.code import checkpoint_name, code_fingerprint, name_other_code
from pipeline.training.config import TrainConfig
from pipeline.training.loop import Trainer
from pipeline.training.names import COLUMNS, item_names, read_items
from pipeline.training.recipe import TrainingRecipe
from pipeline.training.summary import announce, conclude
from pipeline.training.windows import Epochs
from pipeline.training.words import StageWords

WARMUP = 50  # steps
BEAM = 10  # items that validation looks at
VALID_USERS = 50_000  # of a larger log a sample validates
FEED_FORWARD = 4  # times the width of the network
KEYS = {"batch_tokens": "dense.batch_items", "learning_rate": "dense.learning_rate"}


@dataclass(frozen=True)
class Inputs:
    """The folders that the stage reads."""

    interactions: Path
    embeddings: Path
    splits: Path


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """The settings of a recipe, made of those of `dense:`; `strategy` is plain training."""

    seed: int
    dataset: str
    backbone: BackboneConfig
    train: TrainConfig
    strategy: str = "full"
    strategies: Mapping[str, Any] = field(default_factory=dict)


def train_retriever(
    config: DenseConfig, inputs: Inputs, *, seed: int, dataset: str, output: Path, reports: Path, scratch: Path
) -> dict[str, Any]:
    """Train from the checkpoint of a stopped run on, if there is one, and write models/dense and reports/dense.json.

    Args:
        config: the section `dense` of params.yaml.
        inputs: the folders to read.
        seed: of weights, windows and dropout.
        dataset: its name, for config.json.
        output: models/dense.
        reports: the folder of dense.json.
        scratch: the folder of checkpoints.

    Returns:
        What dense.json holds.
    """
    # 1. Read the inputs, and name the checkpoint of an interrupted run with the same parameters, inputs and code.
    splits = Splits.read(inputs.splits)
    names = item_names(splits, inputs.embeddings, content=config.text, key="dense.text")
    items = read_items(inputs.interactions / "items.parquet", len(names.sids.codes_IL))
    settings = _Settings(
        seed=seed,
        dataset=dataset,
        backbone=_network(config),
        train=_training(config, len(Epochs(splits, "sequences", seed)), splits),
    )
    recipe = TrainingRecipe.of(settings, splits, names.sids, StageWords("dense", KEYS))
    read = {**names.inputs, "splits": fingerprint(inputs.splits)}
    run_name = checkpoint_name(fingerprint({"stage": "dense", **recipe.influences()}, read), code_fingerprint("dense"))
    checkpoints = Checkpoints(scratch, run_name, "dense")
    kind, why = kind_of(config.index, len(names.sids.codes_IL))
    # 2. Train, while no other process trains the same; the first process writes.
    with checkpoints.alone(output):
        device, resume = set_up(recipe, checkpoints)
        with joined(device) as world:
            trainer = trainer_of(recipe, splits, names, device, checkpoints=checkpoints, world=world, resume=resume)
            if world.leads:
                if why:
                    say(why)
                name_other_code(checkpoints.folder, "dense")
                announce(trainer, names.line)
            trainer.run()
            report = _report(trainer)
            if world.leads:
                report |= _index(kind, trainer, splits, output, seed)
                about = {"enabled": True, **recipe.model_config(read)}
                catalogue = trainer.validation.catalogue
                save_generator(output, trainer.evaluated, catalogue, items.blocks(COLUMNS), about, stage="dense")
                write_json(reports / DENSE_REPORT, sealed(report, reports, ()))
                checkpoints.delete()
                conclude(trainer, {"windows_per_second": report["dense_windows_per_second"]})
    return report


def _index(kind: str, trainer: Trainer, splits: Splits, output: Path, seed: int) -> dict[str, float]:
    """Write the index into models/dense, or remove that of an earlier model, and return its figures."""
    if kind == "exact":
        (output / INDEX).unlink(missing_ok=True)
        return {}
    model: Any = trainer.evaluated  # a network over items
    positions = splits.targets("valid")[1]
    positions = positions[:: -(-len(positions) // QUERIES)]
    items_N, offsets = histories_of(splits, positions)
    filled = np.append(True, np.diff(offsets) > 0)  # users without a history ask for nothing
    with evaluating(model), torch.no_grad():
        vectors_Id = model.item_vectors().float().cpu().numpy()
        states_Qd = states_of(model, items_N, offsets[filled])
        index, figures = build_index(kind, vectors_Id, states_Qd, seed)
    index.write(output)
    looked = f"{figures['probes']} of {figures['groups']} groups" if kind == "ivf" else "every item"
    say(
        f"dense: index {kind}, {looked} looked at: {figures['recall_at_10']:.1%} of the exact first 10 items and "
        f"{figures['recall_at_200']:.1%} of the exact first 200 found, over {len(states_Qd):,} histories"
    )
    return {f"dense_index_{name}": value for name, value in figures.items()}


def _network(config: DenseConfig) -> BackboneConfig:
    """Return the settings of the backbone sasrec; those that it does not read have any value that is allowed."""
    return BackboneConfig(
        name="sasrec",
        encoder_layers=1,
        decoder_layers=config.layers,
        d_model=config.dim,
        heads=config.heads,
        d_head=config.dim // config.heads,
        d_ff=FEED_FORWARD * config.dim,
        ff_hidden_layers=1,
        dropout=config.dropout,
        separators=False,
        relative_buckets=32,
        relative_max_distance=128,
        embedding_std=1.0,
        recency_items=0,
        hstu_attention="silu",
        time_bias=True,
        content=config.text,
        temperature=0.0,
        negatives=0,
        actions=False,
        item_rows=False,
    )


def _training(config: DenseConfig, windows: int, splits: Splits) -> TrainConfig:
    """Return the settings of the engine; `windows` are those of an epoch."""
    return TrainConfig(
        task="retrieval",
        windows="sequences",
        targets="all",
        max_windows=max(1, config.max_epochs * windows),
        batching="packed",
        # A history is never cut in two: where one is longer than a step, each step is one history.
        batch_tokens=max(config.batch_items, splits.max_history),
        pad_to=0,
        accumulate=1,
        optimizer="adamw",
        learning_rate=config.learning_rate,
        weight_decay=0.0,
        warmup_steps=WARMUP,
        schedule="constant",
        clip_norm=0.0,
        ema=config.ema,
        precision="auto",
        validate_every=config.validate_every,
        validate_in="steps",
        patience=config.patience,
        select="recall_at_10",
        valid_users=VALID_USERS,
        beam=BEAM,
        checkpoint_every=config.checkpoint_every,
        device=config.device,
        compile=config.compile,
        threads=config.threads,
        deterministic=config.deterministic,
    )


def _report(trainer: Trainer) -> dict[str, Any]:
    """Return the figures of a finished run; `history` has one row per validation."""
    state = trainer.state
    return {
        "enabled": True,
        "dense_train_seconds": state.train_seconds,
        "dense_compile_seconds": state.compile_seconds,
        "dense_valid_seconds": state.valid_seconds,
        "dense_wall_seconds": state.wall_seconds,
        "dense_windows_per_second": state.windows / state.train_seconds,
        "dense_peak_memory_gib": peak_memory_gib(trainer.device),
        "dense_steps": state.step,
        "dense_best_step": state.best_step,
        "dense_valid_recall_at_10": state.best_score,
        "dense_windows_trained": state.windows,
        "dense_parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "dense_content": int(trainer.validation.catalogue.content_IC is not None),
        "history": state.history,
    }
