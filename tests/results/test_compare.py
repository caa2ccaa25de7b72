"""Comparisons find what is there, stay silent where nothing is, and say how small an effect they could have seen."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from synthetic_runs import ranks_of, simulated, write_run
from typed import present

from pipeline.metrics import gains, recall_at
from pipeline.results.bootstrap import interval
from pipeline.results.compare import (
    Comparison,
    ComparisonReport,
    Difference,
    compare,
    differences,
    two_level,
    verdict,
)
from pipeline.results.comparison_text import comparison_json, comparison_markdown, comparison_rows, comparison_text
from pipeline.results.ranks import Ranks

USERS = 1000


def chances(rng: np.random.Generator) -> np.ndarray:
    """A few users are easy, most are hopeless: mean about 0.1, as in real logs."""
    return rng.beta(0.3, 2.7, USERS) * 0.9


def recall(found: list[Difference]) -> Difference:
    return next(difference for difference in found if difference.metric == "recall_at_10")


def repeat(times: int, **settings: Any) -> list[Difference]:
    """recall_at_10 of simulated comparisons with fresh users and seeds each time."""
    found = []
    for number in range(times):
        rng = np.random.default_rng(number)
        chances_U, seeds = chances(rng), settings.get("seeds", [1, 2, 3])
        reference = simulated(rng, chances_U, seeds, seed_spread=settings.get("spread", 0.0))
        arm = simulated(
            rng,
            chances_U,
            seeds,
            effect=settings.get("effect", 0.0),
            seed_spread=settings.get("spread", 0.0),
            name="other",
        )
        found.append(recall(differences(reference, arm, samples=200, seed=number)))
    return found


@pytest.mark.parametrize("settings", [{"seeds": [1]}, {}, {"spread": 0.02}, {"seeds": [1, 2, 3, 4, 5], "spread": 0.05}])
def test_where_nothing_differs_false_alarms_are_few(settings: dict[str, Any]) -> None:
    found = repeat(120, **settings)
    covered = np.mean([difference.low <= 0 <= difference.high for difference in found])
    assert covered >= 0.92
    assert np.mean([difference.verdict == "better" for difference in found]) <= 0.05
    assert np.mean([difference.verdict == "worse" for difference in found]) <= 0.05


def test_a_large_effect_is_found_and_its_size_is_right() -> None:
    found = repeat(60, effect=0.6)
    assert np.mean([difference.verdict == "better" for difference in found]) >= 0.95
    assert np.mean([difference.relative for difference in found]) == pytest.approx(0.6, abs=0.04)
    assert (
        np.mean([present(difference.relative_low) <= 0.6 <= present(difference.relative_high) for difference in found])
        >= 0.9
    )


def test_a_large_loss_is_called_worse() -> None:
    assert np.mean([difference.verdict == "worse" for difference in repeat(40, effect=-0.6)]) >= 0.95


def test_an_effect_of_the_detectable_size_is_found_in_about_four_of_five_repeats() -> None:
    size = np.mean([difference.detectable / difference.reference for difference in repeat(40, seeds=[1])])
    found = repeat(120, effect=float(size), seeds=[1])
    assert 0.68 <= np.mean([difference.low > 0 for difference in found]) <= 0.92


def test_the_two_levels_equal_a_slow_bootstrap_over_seeds_and_users() -> None:
    rng = np.random.default_rng(0)
    reference_SU, other_SU = rng.random((4, 50)), rng.random((4, 50)) + 0.2 + 0.3 * rng.random((4, 1))
    _, fast = two_level(reference_SU[..., None], other_SU[..., None], paired=True, samples=20_000, seed=1)
    change_SU = other_SU - reference_SU
    by_seed_S, centre = change_SU.mean(1), change_SU.mean()
    users = np.array([change_SU.mean(0)[rng.integers(0, 50, 50)].mean() for _ in range(20_000)])
    seeds = np.array([by_seed_S[rng.integers(0, 4, 4)].mean() - centre for _ in range(20_000)]) * np.sqrt(4 / 3)
    degrees = (users.var() + seeds.var()) ** 2 / (seeds.var() ** 2 / 3)
    assert fast.mean() == pytest.approx(centre, abs=0.003)
    assert fast.std() == pytest.approx((users + seeds).std() * stats.t.ppf(0.975, degrees) / 1.96, rel=0.03)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_only_seeds_vary_few_of_them_still_cover_95_percent(seeds: int) -> None:
    rng, covered = np.random.default_rng(0), []
    for number in range(400):
        sides = [np.tile(rng.standard_normal((seeds, 1, 1)), (1, 4, 1)) for _ in range(2)]
        low, high = interval(two_level(*sides, paired=True, samples=300, seed=number)[1])
        covered.append(low[0] <= 0 <= high[0])
    assert 0.9 <= np.mean(covered) <= 0.98


def test_one_seed_on_a_side_leaves_the_spread_over_users_only() -> None:
    rng = np.random.default_rng(6)
    one, three = rng.random((1, 200, 1)), rng.random((3, 200, 1))
    _, change = two_level(one, one[:, ::-1], paired=True, samples=4000, seed=0)
    assert change.std() == pytest.approx((one - one[:, ::-1]).std() / np.sqrt(200), rel=0.05)
    assert np.isfinite(two_level(one, three, paired=False, samples=50, seed=0)).all()


def test_pairing_by_seed_takes_out_what_the_seeds_share() -> None:
    rng = np.random.default_rng(1)
    shared_S = rng.normal(0, 0.3, 5)[:, None]
    reference = (rng.random((5, 100)) + shared_S)[..., None]
    paired, unpaired = (
        two_level(reference, reference + 0.01, paired=pair, samples=500, seed=2)[1] for pair in (True, False)
    )
    np.testing.assert_allclose(paired, 0.01)
    assert unpaired.std() > 0.1


@pytest.mark.parametrize(
    ("low", "high", "relative_low", "word"),
    [
        (0.001, 0.002, 0.01, "better"),
        (-0.001, 0.002, -0.02, "not worse"),
        (-0.002, -0.001, -0.02, "worse, by less than 3%"),
        (-0.01, -0.001, -0.1, "worse"),
        (-0.01, 0.01, -0.1, "unclear"),
        (-0.01, 0.01, None, "unclear"),
    ],
)
def test_the_words_follow_the_ends_of_the_intervals(
    low: float, high: float, relative_low: float | None, word: str
) -> None:
    assert verdict(low, high, relative_low) == word


def test_values_are_means_over_seeds_of_each_runs_own_metric_with_and_without_ties() -> None:
    rng = np.random.default_rng(3)
    reference, arm = (simulated(rng, chances(rng), [1, 2], name=name) for name in ("full", "other"))
    found = {difference.metric: difference for difference in differences(reference, arm, samples=50, seed=0)}
    ranks = [run.ranks.users for run in arm.runs if isinstance(run.ranks, Ranks)]
    assert found["recall_at_10"].value == pytest.approx(np.mean([recall_at(r["rank"].to_numpy(), 10) for r in ranks]))
    apart = [r[~r["tie"]]["rank"].to_numpy() for r in ranks]
    assert found["noties_ndcg_at_10"].value == pytest.approx(np.mean([gains("ndcg_at_10", r).mean() for r in apart]))
    assert found["bucket_recall_at_10"].difference == pytest.approx(
        found["bucket_recall_at_10"].value - found["bucket_recall_at_10"].reference
    )


def test_too_few_hits_give_no_relative_statement(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", ranks_of(np.array([1] + [0] * 30)))
    b = write_run(tmp_path / "b", ranks_of(np.array([0] * 31), strategy="other"))
    found = recall(compare([a, b]).tables[0].comparisons[1].differences)
    assert found.relative is None
    assert found.verdict in ("unclear", "worse")
    assert "too few hits" in comparison_text(compare([a, b]))


def test_the_report_names_arms_seeds_and_settings_and_the_rows_are_plain_values(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    chances_U, folders = chances(rng), []
    for name in ("full", "other"):
        runs = simulated(rng, chances_U, [1, 2], name=name).runs
        folders += [write_run(tmp_path / run.name, run.ranks) for run in runs]
    report = compare(folders, samples=100)
    text = comparison_text(report)
    assert "demo: 1,000 users, leave one out, ties source, beam 20, constrained, seen items included" in text
    assert "full, 2 seeds (1, 2): the reference" in text
    assert "other, 2 seeds (1, 2), against full, 2 seeds (1, 2), paired by seed" in text
    assert json.loads(json.dumps(comparison_rows(report))) == comparison_rows(report)
    assert comparison_text(compare(folders, samples=100)) == text


def test_the_report_says_when_seeds_are_not_paired_or_too_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    runs = [
        run
        for seeds, name in (([1, 2], "full"), ([2, 3], "other"))
        for run in simulated(rng, chances(rng), seeds, name=name).runs
    ]
    folders = [write_run(tmp_path / run.name, run.ranks) for run in runs]
    assert "seeds differ, so they are not paired" in comparison_text(compare(folders, samples=50))
    monkeypatch.setattr(Comparison, "other", "differing in train.ema too")
    assert "differing in train.ema too, one seed on a side" in comparison_text(compare(folders[1:], samples=50))


def test_the_verdict_of_one_seed_says_so_in_text_markdown_and_json(tmp_path: Path) -> None:
    hits = np.array([1, 2, 0, 3] * 30)
    folders = [
        write_run(tmp_path / "a", ranks_of(hits)),
        write_run(tmp_path / "b", ranks_of(np.zeros_like(hits), strategy="x")),
    ]
    report = compare(folders, samples=100)
    assert "worse, one seed" in comparison_text(report)
    assert "worse, one seed |" in comparison_markdown(report)
    (table,) = comparison_json(report)["tables"]
    assert all(row["one_seed"] for row in table["differences"])
    assert [arm["reference"] for arm in table["arms"]] == [None, "full"]


def test_runs_of_two_protocols_stand_in_two_tables_and_are_not_compared(tmp_path: Path) -> None:
    hits = np.array([1, 2, 0, 3] * 30)
    folders = [
        write_run(tmp_path / f"{strategy}{beam}", ranks_of(hits, strategy=strategy, beam=beam))
        for strategy, beam in (("full", 20), ("rastp", 20), ("rastp", 50))
    ]
    report: ComparisonReport = compare(folders, samples=100)
    assert [[c.reference is not None for c in table.comparisons] for table in report.tables] == [[False, True], [False]]
    text = comparison_text(report)
    assert "rastp, seed 0" in text
    assert "no full on backbone t5 was tested so, compared with nothing" in text
    assert "Runs of different tables differ in how they were tested" in text


def test_the_heading_says_how_each_model_found_its_items(tmp_path: Path) -> None:
    hits = np.array([1, 2, 0, 3] * 30)
    made = {"a": "t5", "b": "gr", "c": "sasrec"}
    for name, backbone in made.items():
        write_run(tmp_path / name, ranks_of(hits, strategy=name, backbone=backbone))

    def heading(*names: str) -> str:
        return comparison_text(compare([str(tmp_path / name) for name in names], samples=100)).splitlines()[0]

    assert "ties source, every item scored, seen items included" in heading("b", "c")
    assert "ties source, beam 20, constrained or every item scored, seen items included" in heading("a", "b", "c")


@pytest.mark.parametrize(
    ("ranking", "backbone", "decoding", "words"),
    [
        ("generator", "t5", "unconstrained", "beam 20, unconstrained"),
        ("generator", "t5", "exact", "every item scored"),
        ("generator", "gr", "constrained", "every item scored"),
        ("fused", "t5", "constrained", "beam 20, constrained, and the lists of the other views"),
        ("counting", "t5", "constrained", "pairs of items counted"),
        ("dense", "gr", "constrained", "the dense retriever's nearest items"),
    ],
)
def test_only_a_generator_over_semantic_ids_has_a_beam(ranking: str, backbone: str, decoding: str, words: str) -> None:
    origin = ranks_of(np.array([1]), ranking=ranking, backbone=backbone, decoding=decoding).origin
    assert origin.searched == words
