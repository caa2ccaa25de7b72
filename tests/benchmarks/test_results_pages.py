"""The pages that are made of the results: they are those of the committed rows, and say no more than the rows do."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign_world import entry
from synthetic_runs import ranks_of
from typed import present

from benchmarks.campaign_rows import Results, read_rows
from benchmarks.measured import Measured, of_campaigns
from benchmarks.papers import paper_page
from benchmarks.papers_figures import PAPERS, Ours
from benchmarks.picture import WANTED, picture, together
from benchmarks.results import documents
from pipeline.artifacts import fingerprint
from pipeline.results.arms import Arm
from pipeline.results.compact_ranks import compact_bytes
from pipeline.results.compare import differences, verdict
from pipeline.results.runs import Run

FIGURES = {f"{name}_at_{k}": 0.05 for name in ("recall", "ndcg") for k in (5, 10)}


@pytest.fixture(scope="module")
def made(root: Path) -> dict[Path, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        return documents()


def test_the_committed_pages_are_what_the_rows_say(made: dict[Path, str], root: Path) -> None:
    for path, text in made.items():
        committed = (root / path).read_text(encoding="utf-8")
        if path.suffix == ".svg":  # another matplotlib draws other paths
            text, committed = ("\n".join(re.findall(r"<text[^>]*>([^<]+)<", one)) for one in (text, committed))
        assert committed == text, "python -m benchmarks.results"


def test_counting_sasrec_and_fusion_stand_in_every_table_of_quality(made: dict[Path, str]) -> None:
    tables = 0
    for path, text in made.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            if re.search(r"\| (full|without RASTP) \|.*0\.", table) and "ndcg@10 |" in table.splitlines()[0]:
                tables += 1
                for name in ("counting pairs", "counting pairs by direction", "SASRec|sasrec", "fused views"):
                    named = re.search(rf"\| ({name})(, seen \w+)? \| [-\d]", table)
                    assert named or "sasrec" in text[: text.index(table)][-400:], (path, name)
    assert tables >= 12


def test_every_row_that_a_page_waits_for_is_listed_by_a_campaign(root: Path) -> None:
    listed = {
        (row.group, row.data, row.arm)
        for path in (root / "benchmarks/campaigns").glob("*.yaml")
        for row in read_rows(path)
    }
    wanted = {
        (ours.group, data, arm)
        for paper in PAPERS
        for data, parts in paper.ours.items()
        for ours in parts
        for arm in ours.arms
        if not ours.raw
    }
    assert sorted(wanted - listed) == []


def arms_of(group: str, arm: str, low: float, high: float, relative_low: float | None) -> list[Measured]:
    row = {**FIGURES, "seed": 1}
    paired = {"difference": (low + high) / 2, "low": low, "high": high, "seeds": [1, 2]}
    full = Measured(group=group, arm="full", data="amazon-beauty", rows=[row], wanted=1)
    return [full, replace(full, arm=arm, paired={**paired, "verdict": verdict(low, high, relative_low)})]


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.name)
def test_a_conclusion_is_a_win_only_where_the_whole_interval_is_above_zero(paper: Any) -> None:
    rng = np.random.default_rng(3)
    part: Ours = paper.ours["amazon-beauty"][0]
    for _ in range(60):
        low, high = np.sort(rng.normal(0, 0.002, 2))
        known = arms_of(part.group, part.counts[0], low, high, low / 0.05)
        text = paper_page(paper, [], known)
        (sentence, *_) = re.findall(r"^\*\*(.*)\*\*$", text, re.MULTILINE)
        assert ("is better than" in sentence) == (low > 0)
        assert ("is worse than" in sentence) == (high < 0)
        assert f"{low:+.4f} to {high:+.4f}; 2 seeds" in sentence
        assert "in the best recipe `" in sentence
        assert "missing" in sentence


def test_an_arm_without_a_run_is_missing_wherever_it_stands() -> None:
    for paper in PAPERS:
        text = paper_page(paper, [], [])
        assert "better" not in "".join(re.findall(r"^\*\*.*\*\*$", text, re.MULTILINE))
        ours = [line for line in text.splitlines() if line.startswith("| the ")]
        assert all("| missing |" in line for line in ours)
        assert text.count("| missing | |\n") == len(paper.costs)


def test_arms_of_a_campaign_have_their_difference_their_cost_and_what_is_missing(tmp_path: Path) -> None:
    """Against the comparison of the same ranks; the cost is one of an older engine."""
    entries = [
        entry(seeds=(1, 2)),
        entry("skipgr", seeds=(1, 2, 3)),
        entry("skipgr", seeds=(1,), measure="cost"),
        entry("intrr"),
    ]
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps(entries))
    results, rng = Results(tmp_path / "out"), np.random.default_rng(0)
    stored: dict[str, list[Any]] = {"full": [], "skipgr": []}
    for row in read_rows(file):
        common = {"settings_key": fingerprint(row.settings), "data": row.data, "seed": row.seed, "commit": "abc"}
        common |= {"key": f"{row.arm}{row.seed}", "hardware": "a machine", "command": "x"}
        if row.measure == "cost":
            results.append(
                {
                    **common,
                    "measure": "cost",
                    "engine": "old",
                    "figures": {"train_seconds": 9.0, "windows_per_second": 7.0},
                }
            )
        elif row.arm in stored and row.seed < 3:
            ranks = ranks_of(rng.integers(0, 15, 400), strategy=row.arm, seed=row.seed)
            stored[row.arm].append(ranks)
            results.append({**common, "measure": "quality", "figures": FIGURES}, compact_bytes(ranks, {}))
    full, skipgr, intrr = of_campaigns(results, [file])
    assert [full.seeds, skipgr.seeds, intrr.seeds] == ["2", "2 of 3", "missing"]
    assert (skipgr.hours, intrr.hours) == (5 / 3600, 5 / 3600)
    assert skipgr.stale
    assert skipgr.time == "9 s, older engine | 7"
    sides = [Arm(name, tuple(Run(name, ranks) for ranks in stored[name])) for name in ("full", "skipgr")]
    expected = differences(*sides, samples=2000, seed=0)
    found = next(one for one in expected if one.metric == "recall_at_10")
    assert skipgr.paired == {
        **{name: getattr(found, name) for name in ("difference", "low", "high", "verdict")},
        "seeds": [1, 2],
    }
    assert full.paired is None


def test_runs_that_were_tested_in_another_way_are_not_compared(tmp_path: Path) -> None:
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps([entry(), entry("skipgr", evaluate__beam=30)]))
    results = Results(tmp_path / "out")
    for row, beam in zip(read_rows(file), (20, 30), strict=True):
        ranks = ranks_of(np.arange(50) % 12, strategy=row.arm)
        ranks = replace(ranks, origin=replace(ranks.origin, beam=beam))
        common = {"key": row.arm, "settings_key": fingerprint(row.settings), "data": row.data, "seed": 1}
        results.append({**common, "measure": "quality", "figures": FIGURES}, compact_bytes(ranks, {}))
    _, skipgr = of_campaigns(results, [file])
    assert (skipgr.paired, skipgr.against) == (None, "not compared: tested in another way")


def test_a_run_is_not_compared_with_itself(tmp_path: Path) -> None:
    """Semantic IDs remade with seed 42 are those that all seeds share."""
    file = tmp_path / "campaign.yaml"
    file.write_text(json.dumps([entry(seeds=(42,)), {**entry(seeds=(42,)), "arm": "remade", "sids": "remade"}]))
    results = Results(tmp_path / "out")
    one = read_rows(file)[0]
    common = {"key": "both", "settings_key": fingerprint(one.settings), "data": one.data, "seed": 42}
    results.append({**common, "measure": "quality", "figures": FIGURES}, compact_bytes(ranks_of(np.arange(50)), {}))
    _, remade = of_campaigns(results, [file])
    assert (remade.paired, remade.against) == (None, "the same runs as `full`")


def timed(arm: str, hardware: str, commit: str, group: str = "beauty-fast") -> Measured:
    cost = {"hardware": hardware, "commit": commit, "train_seconds": 5.0, "windows_per_second": 1.0}
    return Measured(group=group, arm=arm, data="amazon-beauty", rows=[FIGURES], cost=cost)


def test_the_picture_takes_a_cost_of_before_where_more_arms_share_its_commit() -> None:
    full, rastp, intrr = (timed(arm, "one", "a") for arm in ("full", "rastp", "intrr"))
    before, now = present(full.cost), {**present(full.cost), "commit": "b", "train_seconds": 4.0}
    full = replace(full, cost=now, earlier=[{**before, "train_seconds": 6.0}, before])
    found = together([full, rastp, replace(intrr, stale=True)])
    assert [(point.name, point.seconds) for point in found.points] == [("full", 5.0), ("rastp", 5.0), ("intrr", 5.0)]
    assert found.said == "one, commit a"


def test_the_picture_has_runs_of_one_machine_and_one_commit_and_names_what_it_lacks() -> None:
    arms = [
        timed("full", "one", "a"),
        timed("rastp", "one", "b"),
        timed("skipgr", "other", "a"),
        timed("intrr", "one", "a", "beauty-fast, backbone decoder"),
        timed("full", "one", "a", "another group"),
        Measured(group="beauty-fast", arm="skipgr", data="amazon-beauty", rows=[FIGURES]),
    ]
    found = together(arms)
    assert [point.name for point in found.points] == ["full", "decoder intrr"]
    assert found.said == "one, commit a"
    drawn = " ".join(re.findall(r"<text[^>]*>([^<]+)<", picture([], [*arms, replace(arms[1], stale=True)])))
    missing = [name for name in WANTED if name not in ("full", "decoder intrr")]
    assert f"so missing: {', '.join(missing)}." in drawn
    assert "so missing" in picture([], [])
