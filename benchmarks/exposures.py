"""Fill the table of predicted actions: networks with and without skipgr on prepared exposures, several seeds.

    python -m pipeline preset demo-exposures && python -m pipeline preset ranking && dvc repro evaluate
    python -m benchmarks.exposures --folder FOLDER            # runs what is missing, seed by seed
    python -m benchmarks.exposures --folder FOLDER --pairs    # the differences that the runs of FOLDER have

A row is one run of the stages `train` and `evaluate` on data/ by params.yaml, with the network, the strategy and the
seed of the row. skipgr is that of docs/actions.md's other tables: 10% of the tokens and r = 0.3 for sequences, from the
fifth epoch on, with as many steps. Rows go to docs/results/raw.jsonl as they end, and FOLDER has each run's reports.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import EMBEDDINGS, INTERACTIONS, SIDS, SPLITS, read_json
from pipeline.config import Params, build_params, load_params
from pipeline.count.stage import run as count
from pipeline.evaluate.stage import run as evaluate
from pipeline.printing import say
from pipeline.results.compare import compare
from pipeline.results.comparison_text import comparison_rows
from pipeline.train.stage import run as train

RAW = Path("docs/results/raw.jsonl")
KIND, PAIRED = "exposures", "exposures paired"
NETWORKS = ("gr", "sasrec", "decoder")
STRATEGIES = ("full", "skipgr")
SKIPGR = {
    "level_ratios": [],
    "token_ratio": 0.1,
    "sequence_ratio": 0.3,
    "first_skipping_epoch": 4,
    "equal_steps": True,
}
FIGURES = ("auc", "gauc", "wgauc", "log_loss", "calibration", "auc_low", "auc_high")
LABELS = ("click_1", "like_1", "watch_seconds_10")


def params_of(base: Params, network: str, strategy: str, seed: int) -> Params:
    """Return the parameters of a row; every network but GR and SASRec reads Semantic IDs."""
    raw = base.plain()
    raw |= {"seed": seed, "strategy": strategy}
    raw["backbone"] = {**raw["backbone"], "name": network}
    raw["skipgr"] = {**raw["skipgr"], **SKIPGR}
    return build_params(raw, "benchmarks/exposures.py")


def run_row(base: Params, network: str, strategy: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate, and return the figures of the row."""
    params = params_of(base, network, strategy, seed)
    out = folder / f"{network}-{strategy}-{seed}"
    inputs = {"splits": SPLITS, "generator": out / "generator", "counting": folder / "counting"}
    told = finished(out / "reports")
    if not told:
        if not inputs["counting"].exists():
            count(params, splits=SPLITS, output=inputs["counting"])
        if not (out / "reports/timings.json").exists():
            train(
                params,
                interactions=INTERACTIONS,
                embeddings=EMBEDDINGS,
                sids=SIDS,
                splits=SPLITS,
                output=out / "generator",
                reports=out / "reports",
                scratch=folder / "scratch",
            )
        told = evaluate(params, **inputs, reports=out / "reports", items=INTERACTIONS / "items.parquet")
    ends = ("auc{}", "gauc{}", "auc{}_low", "auc{}_high", "gauc{}_low", "gauc{}_high")
    wanted = [*FIGURES, *(end.format(f"_{label}") for label in LABELS for end in ends)]
    wanted += [f"means_{name}{label}" for name in ("auc", "gauc") for label in ("", *(f"_{key}" for key in LABELS))]
    wanted += ["exposures", "users", "best_step", "windows_trained", "tokens_trained", "parameters"]
    return {name: told[name] for name in wanted}


def finished(reports: Path) -> dict[str, float]:
    """Return the figures of a run that has ended; nothing where it has not."""
    if not (reports / "details.json").exists():
        return {}
    return {**read_json(reports / "details.json"), **read_json(reports / "metrics.json")}


def known_rows(data: str) -> set[tuple[str, str, int]]:
    """Return network, strategy and seed of the rows that are there."""
    rows = [json.loads(line) for line in RAW.read_text(encoding="utf-8").splitlines()]
    return {
        (row["model"], row["strategy"], row["seed"]) for row in rows if row.get("kind") == KIND and row["data"] == data
    }


def differences_of(folder: Path, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Give the paired differences of skipgr to full, and of the networks to SASRec, over the seeds that both have."""
    sides = [((network, "skipgr"), (network, "full")) for network in NETWORKS]
    sides += [((network, "full"), ("sasrec", "full")) for network in NETWORKS if network != "sasrec"]
    for one, other in sides:
        both = [seed for seed in seeds if all((folder / f"{n}-{s}-{seed}/reports").exists() for n, s in (one, other))]
        if not both:
            continue
        arms = [
            f"{network}-{strategy}=" + ",".join(str(folder / f"{network}-{strategy}-{seed}/reports") for seed in both)
            for network, strategy in (other, one)
        ]
        for row in comparison_rows(compare(arms)):
            if row["metric"] in ("auc", "gauc", "auc_click_1", "gauc_click_1"):
                yield {"difference_of": f"{'-'.join(one)} over {'-'.join(other)}", **row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS])
    parser.add_argument("--pairs", action="store_true")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--commit", required=True)
    parser.add_argument("--hardware", required=True)
    args = parser.parse_args()
    about = {"commit": args.commit, "hardware": args.hardware}
    with RAW.open("a", encoding="utf-8") as file:
        if args.pairs:
            for found in differences_of(args.folder, args.seeds):
                file.write(json.dumps({"kind": PAIRED, "data": args.data, **found, **about}) + "\n")
            return
        for seed, network, strategy in itertools.product(args.seeds, args.networks, STRATEGIES):
            if (network, strategy, seed) in known_rows(args.data):
                continue
            figures = run_row(load_params(), network, strategy, seed, args.folder)
            row = {"kind": KIND, "data": args.data, "model": network, "strategy": strategy, "seed": seed, **figures}
            file.write(json.dumps({**row, **about, "command": "python -m benchmarks.exposures"}) + "\n")
            file.flush()
            say(f"{network}, {strategy}, seed {seed}: AUC {figures['auc']:.4f}")


if __name__ == "__main__":
    main()
