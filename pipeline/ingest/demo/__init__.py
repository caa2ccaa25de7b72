"""Simulate a short-video platform from a seed, so that the pipeline runs without anybody's data.

`generate_demo_log` writes raw files like a user's, and ingest reads them like any others. scenario.py holds the knobs,
items.py the catalogue, behaviour.py the users, pictures.py the images, vocabulary.py the words.

Shape legend: I items, E exposures.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.ingest.demo.behaviour import Log, simulate
from pipeline.ingest.demo.items import Items, make_items, make_routes
from pipeline.ingest.demo.pictures import draw
from pipeline.ingest.demo.scenario import Scenario, load_scenario

__all__ = ["generate_demo_log"]


def generate_demo_log(scenario_path: Path, seed: int, output: Path) -> Path:
    """Simulate the platform and write its files; equal scenario and seed give equal bytes.

    Args:
        scenario_path: the YAML file with the knobs.
        seed: decides everything that is drawn.
        output: folder for interactions.csv.gz (user, item, timestamp in seconds, click, watch_seconds, like, share; in
            order of time), items.jsonl (item, title, description, categories, image) and images/ITEM.png.

    Returns:
        `output`.

    Raises:
        UserError: the scenario has unknown, missing or impossible values.
        OSError: a file cannot be written.
    """
    scenario = load_scenario(scenario_path)
    (output / "images").mkdir(parents=True, exist_ok=True)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(4)]
    items = make_items(scenario, streams[0])
    log = simulate(scenario, items, make_routes(scenario, streams[1]), streams[2])
    _write_log(output / "interactions.csv.gz", log, items)
    _write_items(output, items, scenario, streams[3])
    return output


def _write_log(path: Path, log: Log, items: Items) -> None:
    frame = pd.DataFrame(
        {
            "user": np.char.add("u", np.char.zfill(log.user_E.astype(str), 5)),
            "item": items.names_I[log.item_E],
            "timestamp": log.timestamp_E,
            "click": log.click_E.astype(int),
            "watch_seconds": log.watch_E,
            "like": log.like_E.astype(int),
            "share": log.share_E.astype(int),
        }
    )
    text = frame.to_csv(index=False, lineterminator="\n")
    path.write_bytes(gzip.compress(text.encode(), compresslevel=6, mtime=0))  # mtime: equal bytes every time


def _write_items(output: Path, items: Items, scenario: Scenario, rng: np.random.Generator) -> None:
    lines = []
    for i in np.argsort(items.names_I):
        image = f"images/{items.names_I[i]}.png"
        category, leaf = divmod(int(items.leaf_I[i]), scenario.leaves_used)
        (output / image).write_bytes(draw(category, leaf, rng))
        row = {
            "item": str(items.names_I[i]),
            "title": items.titles[i],
            "description": items.descriptions[i],
            "categories": items.categories[i],
            "image": image,
        }
        lines.append(json.dumps(row) + "\n")
    (output / "items.jsonl").write_text("".join(lines), encoding="utf-8")
