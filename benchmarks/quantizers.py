"""Every quantizer on the embeddings that came with a dataset; prints one table and one JSON row per line of it.

    python benchmarks/quantizers.py amazon-beauty                        # folders with *_embeddings.npy and items.*
    python benchmarks/quantizers.py amazon-beauty amazon-sports --methods rkmeans,rqvae --json rows.jsonl
    python benchmarks/quantizers.py amazon-beauty --recall 250000        # and a small recommender on each
    python benchmarks/quantizers.py amazon-beauty --methods rkmeans --interactions 0,0.25,0.5,0.75,1

Everything else is as params.yaml has it.

Columns. colliding: items that share their codes with another, and the largest such group, before the deduplication
digit. used, perplexity: of the codes of each level. error: squared errors over squared lengths; rkmeans and vqvae know
the lengths of their residuals, rqvae and simvq do not. neighbour: items whose nearest neighbour has the same first 1,
2, 3 codes; with --interactions also the nearest one by content alone and by interactions alone. category: pairs of
items with the same first 1, 2 codes that are of one category, beside that of all pairs. CPU s: processor seconds of the
quantizer and these figures, which do not depend on what else runs. recall@10: of the default small model on test, beam
20 constrained, exact item.
"""

import argparse
import dataclasses
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from pipeline.artifacts import Embeddings, Interactions, Sids, TrainingPart, read_parquet
from pipeline.config import Params, build_params
from pipeline.count.stage import run as count
from pipeline.embed.stage import run as embed
from pipeline.evaluate.stage import run as evaluate
from pipeline.ingest.stage import run as ingest
from pipeline.quantize.interactions import join_interactions
from pipeline.quantize.stage import make_sids
from pipeline.split.stage import run as split
from pipeline.train.stage import run as train

METHODS = "rkmeans,rqvae,vqvae,simvq"


def prepare(source: Path, folder: Path) -> Params:
    """Ingest, embed and split a dataset into `folder`; `demo` names the built-in one."""
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw["quantize"]["max_collision_rate"] = 1.0
    if source.name != "demo":
        raw["dataset"] = "custom"
        raw["ingest"]["path"] = str(source)
        raw["embed"]["encoder"] = "precomputed"
        raw["quantize"]["codes"] = 256
        raw["train"]["validate_every"] = 400
    params = build_params(raw)
    ingest(params, output=folder / "interactions", scratch=folder / "scratch")
    if source.name != "demo":  # precomputed vectors are a column of what ingest wrote
        params = dataclasses.replace(
            params, embed=dataclasses.replace(params.embed, path=str(folder / "interactions" / "items.parquet"))
        )
    embed(params, interactions=folder / "interactions", output=folder / "embeddings", scratch=folder / "scratch")
    split(params, interactions=folder / "interactions", output=folder / "splits")
    count(params, splits=folder / "splits", output=folder / "counting")
    return params


def measure(folder: Path, params: Params, by_block: bool) -> tuple[Sids, dict[str, Any]]:
    """Quantize and time it, in processor seconds; by_block: also measure neighbours by content and by interactions."""
    items = read_parquet(Interactions(folder / "interactions").items)
    categories_I = items["categories"].factorize()[0] if "categories" in items else None
    vectors_Id = Embeddings.read(folder / "embeddings").vectors_Id
    part = TrainingPart.read(folder / "splits")
    began = time.process_time()
    sids = make_sids(vectors_Id, params.quantize, params.seed, categories_I, part)
    row: dict[str, Any] = {"cpu_seconds": round(time.process_time() - began, 1)}
    if by_block:
        joined = join_interactions(vectors_Id, part, params.quantize)
        row["interactions"] = joined.figures(params.quantize, sids.codes_IL[:, : params.quantize.levels])
    return sids, row


def recall(folder: Path, params: Params, sids: Sids, windows: int) -> dict[str, float]:
    """Train and test the default small model on these SIDs."""
    params = dataclasses.replace(params, train=dataclasses.replace(params.train, max_windows=windows))
    out = folder / params.quantize.method
    sids.write(out / "sids")
    train(
        params,
        interactions=folder / "interactions",
        sids=out / "sids",
        splits=folder / "splits",
        output=out / "generator",
        reports=out / "reports",
        scratch=folder / "scratch",
    )
    metrics = evaluate(
        params,
        splits=folder / "splits",
        counting=folder / "counting",
        generator=out / "generator",
        reports=out / "reports",
    )
    return {
        key: metrics[key]
        for key in (
            "recall_at_10",
            "recall_at_10_low",
            "recall_at_10_high",
            "bucket_recall_at_10",
            "noties_recall_at_10",
            "windows_trained",
            "train_seconds",
        )
    }


def line(name: str, method: str, row: dict[str, Any], quality: dict[str, Any]) -> str:
    """One line of the table."""
    levels = [quality[f"level_{number}"] for number in (1, 2, 3)]

    def each(key: str, form: str, count: int = 3) -> str:
        return " ".join("-" if level[key] is None else format(level[key], form) for level in levels[:count])

    chance = quality["category_agreement_by_chance"]
    beside = "(-)" if chance is None else f"({chance:.3f})"
    return (
        f"{name:14} {method:8} {quality['collision_rate']:9.1%} {quality['largest_group']:4} "
        f"{each('used_codes', 'd'):>12} {each('perplexity', '.0f'):>12} "
        f"{quality['relative_reconstruction_error']:6.3f} {each('neighbour_agreement', '.2f'):>15} "
        f"{each('category_agreement', '.2f', 2):>10} {beside:>7} {row['cpu_seconds']:8.1f} "
        f"{format(row['recall_at_10'], '.4f') if 'recall_at_10' in row else 'missing':>9}"
        f"{by_block(row['interactions']) if 'interactions' in row else ''}"
    )


def by_block(figures: dict[str, Any]) -> str:
    """The end of a line with --interactions."""

    def agreement(key: str) -> str:
        return " ".join(f"{share:.2f}" for share in figures[key] or [])

    return (
        f"   share {figures['share']:<4g} neighbour by content {agreement('content_neighbour_agreement')}, "
        f"by interactions {agreement('interaction_neighbour_agreement')}; "
        f"{figures['items_without_vector']} items without"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+", help="folders of datasets, or demo")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the section quantize")
    parser.add_argument("--interactions", metavar="SHARES", help="quantize.interactions, such as 0,0.5,1")
    parser.add_argument("--recall", type=int, default=0, metavar="WINDOWS", help="train a small recommender on each")
    parser.add_argument("--json", type=Path, help="append one row per line to this file")
    args = parser.parse_args()
    changes = {key: json.loads(value) for key, value in (setting.split("=", 1) for setting in args.set)}

    lines = [
        f"{'data':14} {'method':8} {'colliding':>9} {'max':>4} {'used':>12} {'perplexity':>12} {'error':>6} "
        f"{'neighbour':>15} {'category (chance)':>18} {'CPU s':>8} {'recall@10':>9}"
    ]
    for source in args.sources:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            base = prepare(source, folder)
            shares = [float(share) for share in (args.interactions or "0").split(",")]
            for method, share in itertools.product(args.methods.split(","), shares):
                chosen = dataclasses.replace(base.quantize, **{"method": method, "interactions": share, **changes})
                params = dataclasses.replace(base, quantize=chosen)
                sids, row = measure(folder, params, by_block=args.interactions is not None)
                if args.recall:
                    row |= recall(folder, params, sids, args.recall)
                lines.append(line(source.name, method, row, sids.quality))
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps({"data": source.name, "settings": changes, **sids.quality, **row}) + "\n")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
