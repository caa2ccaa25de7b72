"""An own log under the real DVC: from a clone to a recommendation in two commands, and every `-S` as README has it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from shell_blocks import Clone

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
SMALL = "-S train.max_windows=600 -S evaluate.bootstrap_samples=50 -S quantize.codes=8 -S embed.dimensions=8"
EVENTS = ("view", "purchase")


def write_log(folder: Path) -> None:
    """Semicolons, ISO times with a zone, other names of columns; every customer sees and buys each product."""
    folder.mkdir()
    rows = [
        f"c{customer:02d};p{product:02d};2025-01-{1 + product:02d}T{customer % 24:02d}:{minute:02d}:00Z;{event}"
        for customer in range(40)
        for product in range(12)
        for minute, event in enumerate(EVENTS)
    ]
    (folder / "interactions.csv").write_text("\n".join(["customer;sku;seen_at;event", *rows]) + "\n")
    items = [f"p{product:02d};Thing number {product} of kind {product % 3};kind {product % 3}" for product in range(12)]
    (folder / "items.csv").write_text("\n".join(["sku;product_name;department", *items]) + "\n")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone.of(ROOT, tmp_path_factory.mktemp("own") / "sidpipe")
    write_log(clone.path / "logs")
    return clone


def ingest_params(clone: Clone) -> dict[str, Any]:
    section: dict[str, Any] = yaml.safe_load((clone.path / "params.yaml").read_text())["ingest"]
    return section


def test_from_a_clone_to_a_recommendation_in_two_commands(clone: Clone) -> None:
    readme = (ROOT / "README.md").read_text()
    first, second = "dvc exp run -S dataset=custom -S ingest.path=logs", "python -m pipeline recommend --user c07"
    assert first in readme
    assert re.search(r"python -m pipeline recommend --user \w+", readme)
    done = clone.run(f"{first} {SMALL}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 items, 480 interactions" in done.stdout
    assert "repeats (the earliest counts)" in done.stdout
    assert "before you queue an experiment (--queue, --temp): dvc add logs" in done.stdout
    # Every user of this small log has had all 12 items, and the model is evaluated without those of the history.
    assert "--with-seen ranks these too" in clone.run(second).stdout
    shown = clone.run(f"{second} --with-seen")
    assert shown.returncode == 0, shown.stderr
    assert "Thing number" in shown.stdout


@pytest.mark.parametrize(
    ("settings", "section"),
    [
        ("-S 'ingest.columns={user: customer, item: sku}'", {"columns": {"user": "customer", "item": "sku"}}),
        ("-S ingest.columns.timestamp=seen_at", {"columns": {"timestamp": "seen_at"}}),
        ("-S 'ingest.where={event: [purchase, cart]}'", {"where": {"event": ["purchase", "cart"]}}),
        ("-S ingest.where= -S ingest.repeats=keep", {"where": "", "repeats": "keep"}),
        ("-S ingest.repeats=last -S ingest.unknown_items=keep", {"repeats": "last", "unknown_items": "keep"}),
    ],
)
def test_s_takes_every_form_of_the_page(clone: Clone, settings: str, section: dict[str, Any]) -> None:
    """The stage ingest alone runs; the values stay for the next line, as the page says."""
    done = clone.run(f"dvc exp run ingest -S dataset=custom -S ingest.path=logs {settings}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = ingest_params(clone)
    for key, value in section.items():
        assert (found[key] | value == found[key]) if isinstance(value, dict) else found[key] == value
    summary = json.loads((clone.path / "data/interactions/ingest.json").read_text())
    assert summary["rows_read"] == 960
    assert summary["interactions"] == (960 if found["repeats"] == "keep" else 480)
    if found["where"]:
        assert summary["not_wanted"] == 480
        assert summary["never_seen"]


def test_a_queued_experiment_finds_the_log_after_the_commands_that_ingest_prints(clone: Clone) -> None:
    (cure,) = set(re.findall(r"dvc add logs && git add \S+ \S+", clone.run("python -m pipeline doctor || true").stdout))
    assert clone.run(cure).returncode == 0
    assert "tracked" not in clone.run("python -m pipeline doctor || true").stdout
    done = clone.run(f"dvc exp run --queue -S dataset=custom -S ingest.path=logs {SMALL} && dvc queue start")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Success" in clone.run("dvc queue status").stdout
