"""A finished result: the files that track reads, with numbers that no formula gives."""

import hashlib
import json
from pathlib import Path

import numpy as np
import yaml

from pipeline.metric_names import BASELINES, HEADLINES, MAIN_METRICS, METRICS

BINS = "bin,users,recall_at_10,ndcg_at_10,cooccurrence_recall_at_10,popularity_recall_at_10\n"


def write_result(project: Path, seed: int, model_hash: str = "aa11", **changes: float) -> dict[str, float]:
    """Reports with random numbers, and a dvc.lock that records them. Returns the metrics."""
    random = np.random.default_rng(seed)
    metrics: dict[str, float] = {}
    systems = {"": METRICS, **{f"{name}_": MAIN_METRICS for name in (*BASELINES, "seen_dropped", "seen_included")}}
    for part in ("", "noties_"):
        for system, names in systems.items():
            metrics |= {part + system + name: round(float(random.uniform(0.01, 0.2)), 6) for name in names}
    for name in MAIN_METRICS:
        metrics |= {f"{name}_low": metrics[name] * 0.9, f"{name}_high": metrics[name] * 1.1}
    metrics |= {
        "users": 1990,
        "noties_users": 1490,
        "tie_share": 0.25,
        "bucket_recall_at_10": 0.2,
        "invalid_rate": 0.0,
        "seen_dropped": 1,
        **{f"{name}_seen_dropped": 1 for name in BASELINES},
        "coverage_at_10": 0.5,
        "expected_recall_at_10": 0.1,
        "train_seconds": 41.5,
        "wall_seconds": 50.25,
        "windows_per_second": 6000.0,
        "tokens_per_second": 99000.0,
        "peak_memory_gib": 0.5,
        "parameters": 250_000,
        "windows_trained": 250_112,
        "tokens_trained": 4_000_000,
        "best_step": 1400,
        **changes,
    }
    headlines = {name: value for name, value in metrics.items() if name in HEADLINES}
    details = {name: value for name, value in metrics.items() if name not in HEADLINES}
    (project / "reports/metrics.json").write_text(json.dumps(headlines))
    (project / "reports/details.json").write_text(json.dumps(details))
    rows = [
        f"{step},{step * 180},{12 - step / 200:.4f},{11 - step / 300:.4f},{step / 20000:.5f},{step / 40000:.5f}"
        for step in range(200, 1601, 200)
    ]
    (project / "reports/history.csv").write_text(
        "step,windows,train_loss,valid_loss,recall_at_10,ndcg_at_10\n" + "\n".join(rows) + "\n"
    )
    (project / "reports/by_history.csv").write_text(BINS + " 1-5,900,.12,.05,.08,.03\n6-10,700,.1,.04,.09,.02\n")
    (project / "reports/by_popularity.csv").write_text(BINS + " 1-5,900,.12,.05,.08,0\n6-10,700,.1,.04,.09,.02\n")
    (project / "reports/kept_by_level.csv").write_text("level,kept\nlevel 1,1.0\nlevel 2,1.0\nseparator,1.0\n")
    (project / "reports/kept_by_position.csv").write_text("items_ago,kept\n0,1.0\n1,1.0\n2,1.0\n")
    (project / "data/sids/levels.csv").write_text(
        "level,used_codes,perplexity,entropy_bits,gini,prefixes,neighbour_agreement,category_agreement\n"
        "level 1,64,57.1,5.84,.27,64,.6,.5\nlevel 2,63,42.3,5.4,.48,713,.3,\n"
    )
    (project / "data/sids/quality.json").write_text("{}")
    _write_lock(project, model_hash)
    return metrics


def _write_lock(project: Path, model_hash: str) -> None:
    def entry(path: str, md5: str) -> dict[str, str]:
        return {"path": path, "hash": "md5", "md5": md5}

    metrics = hashlib.md5((project / "reports/metrics.json").read_bytes()).hexdigest()
    stages = {
        "ingest": {"outs": [entry("data/interactions", "c0ffee.dir")]},
        "train": {"deps": [entry("data/sids", "51d5.dir"), entry("data/splits", "5911.dir")]},
        "evaluate": {
            "deps": [entry("models/generator", f"{model_hash}.dir")],
            "outs": [entry("reports/metrics.json", metrics), entry("reports/ranks.parquet", "4a4c5")],
        },
    }
    (project / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
