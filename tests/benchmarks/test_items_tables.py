"""The tables of the networks over items, on made-up results of a campaign and rows of raw.jsonl."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign_world import entry
from synthetic_runs import ranks_of

from benchmarks.campaign_rows import ROOT, Results, read_rows
from benchmarks.items_tables import (
    BEGIN,
    END,
    GROUP,
    NETWORKS,
    PAIRS,
    STRATEGIES,
    actions_page,
    figure_rows,
    paired_rows,
)
from benchmarks.measured import Measured, of_campaigns
from benchmarks.results_tables import DEEP_FIGURES
from pipeline.artifacts import fingerprint
from pipeline.metrics import gains
from pipeline.results.arms import Arm
from pipeline.results.compact_ranks import compact_bytes
from pipeline.results.compare import differences
from pipeline.results.ranks import Ranks
from pipeline.results.runs import Run

DATA, USERS, SEEDS = "amazon-beauty", 900, (1, 42, 999)
PAGE = f"above\n{BEGIN.format('figures')}old\n{END}\nbetween\n{BEGIN.format('differences')}old\n{END}\nbelow\n"
Ran = dict[tuple[str, str, int], Ranks]


def made_up(number: int, seed: int, count: int = USERS, **origin: Any) -> Ranks:
    """Ranks up to 200 by either rule for seen items, 0 beyond; `number` says which."""
    rng = np.random.default_rng(number)
    ranks = ranks_of(rng.integers(-200, 201, count).clip(min=0), seed=seed, filter_seen=True, **origin)
    ranks.users["other_rank"] = rng.integers(-200, 201, count).clip(min=0)
    return ranks


def campaign(folder: Path, without: Iterable[tuple[str, str, int]] = ()) -> tuple[list[Measured], Ran]:
    """Every arm of the tables on one dataset, with results but for those of `without`."""
    entries = [
        {**entry(strategy, seeds=SEEDS, backbone__d_ff=8 + number), "group": f"{GROUP}: {network}", "data": DATA}
        for number, network in enumerate(NETWORKS)
        for strategy in STRATEGIES
    ]
    file = folder / "campaign.yaml"
    file.write_text(json.dumps(entries))
    results = Results(folder / "out")
    ran: Ran = {}
    for row in reversed(read_rows(file)):
        name = (row.group.removeprefix(f"{GROUP}: "), row.arm, row.seed)
        if name in without:
            continue
        ranks = ran[name] = made_up(len(ran), row.seed)
        by_rule = {"seen_dropped": ranks.users["rank"], "seen_included": ranks.users["other_rank"]}
        figures = {
            f"{rule}_{key}": gains(key, users.to_numpy()).mean()
            for rule, users in by_rule.items()
            for key in DEEP_FIGURES
        }
        common = {"key": "-".join(map(str, name)), "data": row.data, "seed": row.seed, "measure": "quality"}
        common |= {"settings_key": fingerprint(row.settings), "commit": "abc", "hardware": "a machine", "command": "x"}
        results.append({**common, "figures": {**figures, "best_step": 1000 + row.seed}}, compact_bytes(ranks, {}))
    return of_campaigns(results, [file], paired=False), ran


def values(ran: Ran, network: str, strategy: str, column: str, key: str) -> np.ndarray:
    """Each seed's gains, float64 [S, U]."""
    return np.stack([gains(key, ran[network, strategy, seed].users[column].to_numpy()) for seed in SEEDS])


def test_figures_are_means_over_seeds_with_the_lowest_and_highest_by_either_rule(tmp_path: Path) -> None:
    arms, ran = campaign(tmp_path)
    rows = figure_rows(arms)
    assert [(row["arm"], row["seen"]) for row in rows[:3]] == [
        ("sasrec, full", "dropped"),
        ("sasrec, full", "included"),
        ("sasrec, skipgr", "dropped"),
    ]
    assert len(rows) == 12
    for row in rows:
        network, strategy = row["arm"].split(", ")
        assert (row["seeds"], row["best_step"]) == ("1, 42, 999", "1,001 / 1,042 / 1,999")
        for key in DEEP_FIGURES:
            found = values(ran, network, strategy, "rank" if row["seen"] == "dropped" else "other_rank", key).mean(1)
            assert row[key] == f"{found.mean():.4f} ({found.min():.4f} to {found.max():.4f})"


def test_differences_are_paired_by_seed_and_user_by_either_rule(tmp_path: Path) -> None:
    """Means against a plain computation, intervals against `compare`, which draws other resamples of 2,000."""
    arms, ran = campaign(tmp_path)
    rows = {(row["difference"], row["seen"]): row for row in paired_rows(arms, Results(tmp_path / "out"))}
    words = ["gr - sasrec, full", "gr-large - gr, full", *(f"skipgr - full, {network}" for network in NETWORKS)]
    assert [name for name, rule in rows if rule == "dropped"] == words
    for (names, against), word in zip(PAIRS.items(), words, strict=True):
        for rule, column in (("dropped", "rank"), ("included", "other_rank")):
            row = rows[word, rule]
            assert row["seed"] == "1, 42, 999"
            for key in DEEP_FIGURES:
                change = values(ran, *names, column, key) - values(ran, *against, column, key)
                assert row[key]["difference"] == pytest.approx(change.mean())
        sides = [Arm(side[0], tuple(Run("x", ran[*side, seed]) for seed in SEEDS)) for side in (against, names)]
        for one in differences(*sides, samples=2000, seed=0):
            if one.metric in DEEP_FIGURES:
                found = rows[word, "dropped"][one.metric]
                width = one.high - one.low
                assert (found["low"], found["high"]) == pytest.approx((one.low, one.high), abs=0.1 * width)


def test_a_difference_has_the_seeds_of_both_sides_and_runs_of_one_protocol(tmp_path: Path) -> None:
    missing = [("gr", "full", 42), ("gr-large", "skipgr", 1), ("gr-large", "skipgr", 42), ("gr-large", "skipgr", 999)]
    arms, _ = campaign(tmp_path, missing)
    found = {row["difference"]: row["seed"] for row in paired_rows(arms, Results(tmp_path / "out"))}
    assert found == {
        "gr - sasrec, full": "1, 999",
        "gr-large - gr, full": "1, 999",
        "skipgr - full, sasrec": "1, 42, 999",
        "skipgr - full, gr": "1, 999",
    }
    rows = figure_rows(arms)
    assert [row["seeds"] for row in rows if row["arm"] == "gr, full"] == ["1, 999 (2 of 3)"] * 2
    (blank,) = [row for row in rows if row["arm"] == "gr-large, skipgr"]
    assert (blank["seeds"], blank["recall_at_10"]) == ("missing", None)
    results = Results(tmp_path / "out")
    narrow = made_up(7, 42, beam=30)
    results.ranks("sasrec-skipgr-42").write_bytes(compact_bytes(narrow, {}))
    assert "skipgr - full, sasrec" not in {row["difference"] for row in paired_rows(arms, results)}


def test_arms_that_were_tested_on_other_users_are_resampled_by_themselves(tmp_path: Path) -> None:
    arms, _ = campaign(tmp_path)
    results = Results(tmp_path / "out")
    apart = {row["difference"]: row for row in paired_rows(arms, results) if row["difference"] != "gr - sasrec, full"}
    for number, seed in enumerate(SEEDS):
        for strategy in STRATEGIES:
            fewer = made_up(20 + number, seed, 800, splits="of other users")
            results.ranks(f"sasrec-{strategy}-{seed}").write_bytes(compact_bytes(fewer, {}))
    found = {row["difference"]: row for row in paired_rows(arms, results)}
    assert found.keys() == apart.keys()
    assert found["skipgr - full, sasrec"] != apart["skipgr - full, sasrec"]
    assert (
        found["skipgr - full, gr"]["recall_at_10"]["difference"]
        == apart["skipgr - full, gr"]["recall_at_10"]["difference"]
    )


def raw_rows(superseded: bool = False) -> list[dict[str, Any]]:
    """Rows of raw.jsonl for one arm and one difference."""
    arm = {"kind": "items", "data": DATA, "model": "gr", "strategy": "skipgr", "seed": "1"}
    rows = [
        {**arm, "seen": seen, **dict.fromkeys(DEEP_FIGURES, value)}
        for seen, value in (("dropped", 0.5), ("included", 0.25))
    ]
    figure = {"difference": 0.1, "low": 0.05, "high": 0.15}
    rows.append({"kind": "items paired", "data": DATA, "difference": "skipgr - full, gr", "seed": "1"})
    rows[-1] |= dict.fromkeys(DEEP_FIGURES, figure)
    return [{**row, "superseded": "by a campaign"} for row in rows] if superseded else rows


def test_the_page_on_actions_has_the_campaign_and_rows_of_raw_for_what_it_lacks(tmp_path: Path) -> None:
    missing = [("gr", "skipgr", seed) for seed in SEEDS]
    arms, ran = campaign(tmp_path, missing)
    paired = paired_rows(arms, Results(tmp_path / "out"))
    text = actions_page(PAGE, arms, paired, raw_rows())
    assert "old" not in text
    assert [line for line in text.splitlines() if not line.startswith("|") and line] == [
        line for line in PAGE.splitlines() if line != "old"
    ]
    assert "| Amazon Beauty | gr, skipgr | 1 | 0.5000 / 0.2500 |" in text
    assert "| Amazon Beauty | skipgr - full, gr | 1 | +0.1000 (+0.0500 to +0.1500) |" in text
    found = [values(ran, "gr", "full", column, "recall_at_10").mean(1) for column in ("rank", "other_rank")]
    cell = f"{found[0].mean():.4f} ({found[0].min():.4f} to {found[0].max():.4f}) / {found[1].mean():.4f}"
    assert f"| Amazon Beauty | gr, full | 1, 42, 999 | {cell} |" in text
    (row,) = [row for row in paired if (row["difference"], row["seen"]) == ("gr - sasrec, full", "dropped")]
    cell = "{difference:+.4f} ({low:+.4f} to {high:+.4f})".format(**row["recall_at_10"])
    assert f"| Amazon Beauty | gr - sasrec, full | 1, 42, 999 | {cell} |" in text
    assert actions_page(text, arms, paired, raw_rows()) == text
    without = actions_page(PAGE, arms, paired, raw_rows(superseded=True))
    assert "| Amazon Beauty | gr, skipgr | missing | missing |" in without
    assert "skipgr - full, gr |" not in without
    with pytest.raises(ValueError, match="figures"):
        actions_page("above", arms, paired, [])


def test_the_campaign_lists_every_arm_of_the_tables_with_three_seeds() -> None:
    rows = read_rows(ROOT / "benchmarks/campaigns/5-items.yaml")
    listed = {(row.data, row.group, row.arm, row.seed) for row in rows}
    assert len(listed) == len(rows) == 3 * len(NETWORKS) * len(STRATEGIES) * len(SEEDS)
    for row in rows:
        assert not row.reads_vectors
        assert (row.params.evaluate.beam, row.params.evaluate.filter_seen) == (200, True)
        assert row.params.strategy == row.arm
        blocks, network = row.params.backbone.decoder_layers, row.group.removeprefix(f"{GROUP}: ")
        assert (row.params.backbone.name, blocks) == {"sasrec": ("sasrec", 2), "gr": ("gr", 2), "gr-large": ("gr", 8)}[
            network
        ]
