"""Write a trained model as a folder for a hub of models: the files of models/generator, and a card about them.

The folder is a models/generator with a README.md: `load_generator` reads it, and so does a copy put back in the
project. Where the evaluation ranked by other views, the metrics are theirs: then the folder holds `generator/`, the
folders of these views beside it, and serving.json, which `Recommender` reads. The card says what the files and the
metrics say, and nothing else.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import GENERATOR, INTERACTIONS, REPORTS, SPLITS, read_json, write_bytes, write_json
from pipeline.errors import UserError
from pipeline.generator import Generator, load_generator
from pipeline.manifest import unsealed
from pipeline.metric_names import ACTION_METRICS, METRICS
from pipeline.printing import shown
from pipeline.results.companions import companions
from pipeline.results.origin import Origin
from pipeline.results.predictions import Predictions
from pipeline.results.ranks import DETAILS_FILE, METRICS_FILE, Ranks, check_reports, read_evaluation
from pipeline.results.serving_facts import FACTS_FILE, serving_facts

CARD = "README.md"
LICENCE = "apache-2.0"  # of the code; the data's own licence is not known here


def export_model(
    folder: Path,
    params: Mapping[str, Any],
    *,
    generator: Path = GENERATOR,
    reports: Path = REPORTS,
    interactions: Path = INTERACTIONS,
    splits: Path = SPLITS,
) -> None:
    """Write the folder whole: a copy beside it takes its name when it is complete.

    Args:
        folder: a new or empty folder.
        params: params.yaml as plain values, for the protocol of the split.
        generator: its folder; what the ranking of the evaluation needs lies beside it.
        reports: what evaluate wrote.
        interactions: the folder of ingest.json.
        splits: the folder of the splits; read where another ranking than the generator's was evaluated.

    Raises:
        UserError: the folder is not empty, a file is missing, or model and reports do not belong together.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already", "an export is a new folder", "name another, or remove it")
    check_reports(reports, generator)
    loaded = load_generator(generator)
    ranks = read_evaluation(reports)
    details = reports / DETAILS_FILE
    figures = {**unsealed(details, read_json(details), "evaluate"), **read_json(reports / METRICS_FILE)}
    card = model_card(loaded, figures, ranks, read_json(interactions / "ingest.json"), params)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        _copy(ranks.origin.ranking, generator, splits, partial)
        write_bytes(partial / CARD, card.encode())
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(ranking: str, generator: Path, splits: Path, folder: Path) -> None:
    """Write the files that answer by `ranking` into a new folder."""
    if ranking == "generator":
        shutil.copytree(generator, folder)
        return
    for name, path in {"generator": generator, **companions(generator, ranking)}.items():
        shutil.copytree(path, folder / name)
    write_json(folder / FACTS_FILE, {**serving_facts(splits), "ranking": ranking})


def model_card(
    loaded: Generator,
    metrics: Mapping[str, Any],
    ranks: Ranks | Predictions,
    ingest: Mapping[str, Any],
    params: Mapping[str, Any],
) -> str:
    """Return the card: metadata as YAML, then data, metrics with intervals, protocol, licence, use."""
    origin = ranks.origin
    return "\n".join(
        [
            *_model_lines(loaded, origin),
            *_ranking_lines(origin.ranking),
            "",
            "## Data",
            "",
            f"Dataset `{origin.dataset}`: {ingest['users']:,} users, {ingest['items']:,} items, "
            f"{ingest['interactions']:,} interactions after cleaning. `items.parquet` holds the raw ids, titles and "
            "codes of the items; no user is part of the files.",
            "",
            "## Metrics",
            "",
            *(_action_metrics(metrics, ranks) if isinstance(ranks, Predictions) else _item_metrics(metrics)),
            "",
            "Intervals come from resampled users; one training run says nothing about other seeds.",
            "",
            "## Protocol",
            "",
            *_protocol(ranks, params.get("split", {})),
            f"- strategy {origin.strategy}, seed {origin.seed}",
            f"- content hash of the model {origin.model}, of the splits {origin.splits}",
            "",
            "## Licence",
            "",
            "The code, sidpipe, is under Apache-2.0. The data, and so the ids and titles in items.parquet, are under "
            "the licence of whoever published them: add it here before you share the folder.",
            "",
            "## Use",
            "",
            "With sidpipe installed:",
            "",
            "```python",
            *_use(loaded, origin),
            "```",
            "",
        ]
    )


def _item_metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Return the table of the metrics of ranked items."""
    return [
        "| metric | model | 95% interval | co-occurrence | popularity |",
        "|---|---|---|---|---|",
        *(
            f"| {_written(name)} | {metrics[name]:.4f} | {_interval(metrics, name)} | "
            f"{_cell(metrics, f'cooccurrence_{name}')} | {_cell(metrics, f'popularity_{name}')} |"
            for name in METRICS
            if name in metrics
        ),
    ]


def _action_metrics(metrics: Mapping[str, Any], predictions: Predictions) -> list[str]:
    """Return the table of the measures of predicted actions, by label."""
    keys = {"": "mean over labels", **{f"_{key}": shown(label) for key, label in predictions.labels.items()}}
    return [
        "| label | measure | model | 95% interval | item and user means |",
        "|---|---|---|---|---|",
        *(
            f"| {words} | {name} | {metrics[name + key]:.4f} | {_interval(metrics, name + key)} | "
            f"{_cell(metrics, f'means_{name}{key}')} |"
            for key, words in keys.items()
            for name in ACTION_METRICS
            if name + key in metrics
        ),
    ]


def _protocol(tested: Ranks | Predictions, split: Mapping[str, Any]) -> list[str]:
    """Return the lines on how the model was tested."""
    if isinstance(tested, Predictions):
        return [
            f"- {len(tested.exposures):,} test exposures of {tested.users:,} users, divided by time from those of "
            "training and validation",
            "- the model predicts what a user does with an item that is shown; it ranks no items, and has no recall",
        ]
    origin = tested.origin
    return [
        f"- {len(tested.users):,} test users, each with one held-out item; split "
        f"`{split.get('protocol', '')}`, ties `{split.get('ties', '')}`",
        f"- {origin.searched}; items of the history {'left out of' if origin.filter_seen else 'part of'} the ranking",
    ]


def _model_lines(loaded: Generator, origin: Origin) -> list[str]:
    """Return the metadata, the title, and what the model reads and predicts."""
    config = loaded.config
    weights = sum(parameter.numel() for parameter in loaded.model.parameters())
    model = f"The model ({config['backbone']['name']}, {weights:,} parameters)"
    history = f"the next item after a history of at most {config['max_history']} items."
    if loaded.model.config.over_items:
        tags, kind = ["sequential-recommendation"], "Recommender over items"
        said = f"{model} predicts {history}"
    else:
        tags, kind = ["generative-retrieval", "semantic-ids"], "Generative recommender over Semantic IDs"
        codes = len(config["widths"])
        said = f"{model} writes the Semantic ID of {history} An item has {codes} code{'s' if codes > 1 else ''}."
    if not loaded.ranks_items:
        tags, kind = ["click-through-rate-prediction"], "Predictor of actions"
        said = (
            f"{model} predicts what a user does with an item that is shown, after a history of at most "
            f"{config['max_history']} exposures."
        )
    return [
        "---",
        f"license: {LICENCE}",
        "library_name: sidpipe",
        "tags:",
        *(f"- {tag}" for tag in ("recommendation", *tags)),
        f"datasets: {json.dumps([str(config['dataset'])])}",
        "---",
        "",
        f"# {kind}: {origin.strategy} on {origin.dataset}",
        "",
        said,
    ]


def _ranking_lines(ranking: str) -> list[str]:
    """Return what the card says of a ranking by other views than the generator alone."""
    if ranking == "generator":
        return []
    views = {"dense": "the dense retriever", "counting": "counting", "fused": "the fused views"}[ranking]
    return [
        "",
        f"The metrics are those of {views} (`evaluate.ranking: {ranking}`), and so are the answers of the code below. "
        "`generator/` holds the model above, the folders beside it what the ranking needs, `serving.json` the popular "
        "items, for a history without a known item.",
    ]


def _use(loaded: Generator, origin: Origin) -> list[str]:
    """Return the Python code that asks the model."""
    if not loaded.ranks_items:
        return [
            "from pathlib import Path",
            "",
            "from pipeline.decoding.actions import predicted_actions",
            "from pipeline.generator import load_generator",
            "",
            'model = load_generator(Path(".")).model',
            "# predicted_actions(model, sequences, targets, 256): log-probabilities of the actions of these exposures",
        ]
    history = json.dumps(loaded.items["raw_id"].astype(str).head(3).tolist(), ensure_ascii=False)
    if origin.ranking == "generator":
        return [
            "from pathlib import Path",
            "",
            "from pipeline.evaluate.recommend import recommend",
            "",
            f"history = {history}",
            'print(recommend(history=history, generator=Path("."), reports=Path("none"), k=10))',
        ]
    return [
        "from pathlib import Path",
        "",
        "from pipeline.serving.answers import Recommender, Request",
        "",
        f"history = {history}",
        f'served = Recommender(Path("generator"), Path("{FACTS_FILE}"))',
        f"print(served.answer([Request(history)], k=10, filter_seen={origin.filter_seen}))",
    ]


def _written(name: str) -> str:
    """Return a metric's name as papers write it: recall_at_10 -> recall@10."""
    return name.replace("_at_", "@")


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _cell(metrics: Mapping[str, Any], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else ""
