"""The demo's simulator: its files, its structure, and what its texts must not give away."""

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.feature_extraction.text import CountVectorizer

from pipeline.exposure_metrics import auc, calibration_error
from pipeline.ingest.demo import generate_demo_log
from pipeline.ingest.demo.behaviour import DAY, START, Log, chances, plan_sessions, simulate
from pipeline.ingest.demo.items import Items, Routes, make_items, make_routes
from pipeline.ingest.demo.scenario import Scenario, load_scenario

SCENARIO = Path(__file__).resolve().parents[2] / "data" / "demo" / "scenario.yaml"


def edited(folder: Path, **knobs: Any) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(SCENARIO.read_text()), **knobs}))
    return path


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def clicked_core(log: pd.DataFrame, least: int = 5) -> pd.DataFrame:
    """The clicks that ingest keeps: every user and item with `least` or more, in order of time."""
    log = log[log.click == 1]
    while True:
        kept = log[log.groupby("item").user.transform("size") >= least]
        kept = kept[kept.groupby("user").item.transform("size") >= least]
        if len(kept) == len(log):
            return kept.sort_values(["user", "timestamp"])
        log = kept


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed scenario, as users get it."""
    return generate_demo_log(SCENARIO, 42, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def log(raw: Path) -> pd.DataFrame:
    return pd.read_csv(raw / "interactions.csv.gz")


@pytest.fixture(scope="module")
def items(raw: Path) -> pd.DataFrame:
    return pd.read_json(raw / "items.jsonl", lines=True).set_index("item")


@pytest.fixture(scope="module")
def simulated() -> tuple[Scenario, Items, Routes, Log]:
    """The same platform seen from inside: (scenario, items, routes, log)."""
    scenario, rng = load_scenario(SCENARIO), np.random.default_rng(3)
    catalogue, routes = make_items(scenario, rng), make_routes(scenario, rng)
    return scenario, catalogue, routes, simulate(scenario, catalogue, routes, rng)


# ---------------------------------------------------------------------------------------------------- files


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(tmp_path: Path) -> None:
    scenario = edited(tmp_path, users=60, items=80)
    first, again, other = (
        generate_demo_log(scenario, seed, tmp_path / name) for seed, name in ((5, "first"), (5, "again"), (6, "other"))
    )
    assert hashes(first) == hashes(again)
    for name in ("interactions.csv.gz", "items.jsonl"):
        assert hashes(first)[name] != hashes(other)[name]


def test_the_log_is_a_compressed_csv_in_order_of_time(raw: Path, log: pd.DataFrame) -> None:
    with gzip.open(raw / "interactions.csv.gz", "rt") as file:
        assert file.readline() == "user,item,timestamp,click,watch_seconds,like,share\n"
    assert log.timestamp.is_monotonic_increasing
    assert set(log.click) == set(log.like) == set(log.share) == {0, 1}
    assert log.user.str.fullmatch(r"u\d{5}").all()
    assert (log.watch_seconds >= 0).all()


def test_items_have_text_a_category_path_and_a_picture_of_their_own(
    raw: Path, log: pd.DataFrame, items: pd.DataFrame
) -> None:
    assert list(items.columns) == ["title", "description", "categories", "image"]
    assert len(items) == 1000
    assert items.index.is_unique
    assert set(log.item) <= set(items.index)
    assert items.categories.str.fullmatch(r"[A-Z][\w ]+ > [A-Z][\w ]+").all()
    assert (items.title.str.len() > 5).all()
    assert (items.description.str.len() > 20).all()
    assert sorted(items.image) == sorted(f"images/{file.name}" for file in (raw / "images").iterdir())


def test_pictures_open_and_show_the_top_category_by_colour(raw: Path, items: pd.DataFrame) -> None:
    corners: dict[str, list[np.ndarray]] = {}
    row: Any
    for row in items.itertuples():
        with Image.open(raw / row.image) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (48, 48), "RGB")
            corners.setdefault(row.categories.split(" > ")[0], []).append(np.array(image.getpixel((0, 0))))
    middles = {top: np.mean(colours, axis=0) for top, colours in corners.items()}
    for top, colours in corners.items():
        for colour in colours:  # nearest by direction: the shade of a colour varies, its hue does not
            likeness = {
                other: colour @ middle / np.linalg.norm(colour) / np.linalg.norm(middle)
                for other, middle in middles.items()
            }
            assert max(likeness, key=lambda other: float(likeness[other])) == top


def test_timestamps_lie_in_the_weeks_of_the_scenario_and_never_tie_for_a_user(log: pd.DataFrame) -> None:
    weeks = yaml.safe_load(SCENARIO.read_text())["weeks"]
    assert log.timestamp.min() >= START
    assert log.timestamp.max() < START + (7 * weeks + 1) * DAY
    assert log.timestamp.max() - log.timestamp.min() > (7 * weeks - 2) * DAY
    assert not log.duplicated(["user", "timestamp"]).any()


def test_nobody_sees_a_video_twice(log: pd.DataFrame) -> None:
    assert not log.duplicated(["user", "item"]).any()


def test_likes_shares_and_long_watching_follow_a_click(log: pd.DataFrame) -> None:
    assert log[log.click == 0][["like", "share"]].to_numpy().sum() == 0
    assert log[log.click == 0].watch_seconds.max() <= 3
    clicked = log[log.click == 1]
    assert clicked.watch_seconds.median() > 8
    assert clicked.share.mean() < clicked.like.mean() < 0.5


# ---------------------------------------------------------------------------------------------------- knobs


def test_shares_of_noise_and_of_the_long_tail_are_near_their_knobs(
    simulated: tuple[Scenario, Items, Routes, Log],
) -> None:
    scenario, catalogue, _, log = simulated
    sessions = plan_sessions(scenario, np.random.default_rng(0))
    assert sessions.noise_S.mean() == pytest.approx(scenario.noise_sessions, abs=0.01)
    assert log.noise_E.mean() == pytest.approx(scenario.noise_sessions, abs=0.02)
    assert catalogue.tail_I.mean() == pytest.approx(scenario.long_tail, abs=0.001)
    shown_I = np.bincount(log.item_E, minlength=scenario.items)
    share = shown_I[catalogue.tail_I].mean() / shown_I[~catalogue.tail_I].mean()
    assert scenario.long_tail_weight < share < 3 * scenario.long_tail_weight  # part of the feed shows anything


def test_whoever_knows_the_interest_ranks_exposures_as_stated(log: pd.DataFrame) -> None:
    """docs/actions.md states these figures: no model of the demo's log can have higher ones, but by chance."""
    scenario = load_scenario(SCENARIO)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(42).spawn(4)]
    catalogue = make_items(scenario, streams[0])
    inside = simulate(scenario, catalogue, make_routes(scenario, streams[1]), streams[2])
    assert inside.click_E.tolist() == log.click.tolist()
    test = inside.timestamp_E >= np.sort(inside.timestamp_E)[int(0.9 * len(log))]
    known = chances(scenario, inside)
    for action, labels, expected in (("click", inside.click_E, 0.7688), ("like", inside.like_E, 0.7586)):
        error = calibration_error(labels, known[action])
        assert error is not None
        assert error < 0.01
        assert auc(labels[test], known[action][test]) == pytest.approx(expected, abs=5e-5)


def test_clicks_are_likelier_on_the_current_interest_and_without_pattern_in_noise(
    simulated: tuple[Scenario, Items, Routes, Log],
) -> None:
    scenario, _, _, log = simulated
    assert log.click_E[log.noise_E].mean() == pytest.approx(scenario.click_noise, abs=0.02)
    calm = log.click_E[~log.noise_E].mean()
    assert scenario.click_other < calm < scenario.click_interest


def test_sessions_are_as_many_and_as_long_as_asked() -> None:
    scenario = load_scenario(SCENARIO)
    sessions = plan_sessions(scenario, np.random.default_rng(1))
    assert np.bincount(sessions.user_S).mean() == pytest.approx(scenario.sessions, rel=0.05)
    assert sessions.length_S.mean() == pytest.approx(scenario.exposures, rel=0.05)


# ---------------------------------------------------------------------------------------------------- structure


def test_most_users_and_items_survive_the_5_core_with_12_to_25_clicks_each(log: pd.DataFrame) -> None:
    core = clicked_core(log)
    assert core.user.nunique() > 1800
    assert core.item.nunique() > 950
    assert 12 < core.groupby("user").size().mean() < 25


def test_a_small_platform_survives_the_5_core(tmp_path: Path) -> None:
    raw = generate_demo_log(edited(tmp_path, users=120, items=80), 42, tmp_path / "raw")
    core = clicked_core(pd.read_csv(raw / "interactions.csv.gz"))
    assert core.user.nunique() > 60
    assert core.item.nunique() > 60


def test_popularity_alone_finds_few_next_items(log: pd.DataFrame) -> None:
    core = clicked_core(log)
    from_end = core.groupby("user").cumcount(ascending=False)
    top = core[from_end >= 2].item.value_counts().index[:10]
    assert core[from_end == 0].item.isin(top).mean() < 0.05


def test_interest_moves_along_routes_that_have_a_direction(simulated: tuple[Scenario, Items, Routes, Log]) -> None:
    _, catalogue, routes, log = simulated
    order = np.lexsort((log.timestamp_E, log.user_E))
    order = order[log.click_E[order] & ~log.noise_E[order]]
    user, leaf = log.user_E[order], catalogue.leaf_I[log.item_E[order]]
    same_user = user[1:] == user[:-1]
    before, after = leaf[:-1][same_user], leaf[1:][same_user]
    forward, backward = (after == routes.step_F[before]).mean(), (before == routes.step_F[after]).mean()
    assert (before == after).mean() > 0.2
    assert forward > 3 * backward


def test_interest_drifts(simulated: tuple[Scenario, Items, Routes, Log]) -> None:
    """Two clicks of a user share a category more often when they are near each other."""
    scenario, catalogue, _, log = simulated
    order = np.lexsort((log.timestamp_E, log.user_E))
    order = order[log.click_E[order]]
    user, category = log.user_E[order], catalogue.leaf_I[log.item_E[order]] // scenario.leaves_used
    near, far, farther = ((category[gap:] == category[:-gap])[user[gap:] == user[:-gap]].mean() for gap in (1, 4, 10))
    assert near > 1.3 * far
    assert far > 1.3 * farther


# ---------------------------------------------------------------------------------------------------- no leak


def _union(sets: Iterable[set[str]]) -> Any:
    return set[str]().union(*sets)


def test_wording_says_the_leaf_and_items_of_a_leaf_are_worded_differently(items: pd.DataFrame) -> None:
    words = items.title.str.lower().str.split().map(set)
    assert items.title.nunique() > 0.97 * len(items)
    descriptions = items.description.str.lower().str.findall(r"[a-z]+").map(set)
    text = pd.Series({item: words[item] | descriptions[item] for item in items.index})
    vocabulary = text.groupby(items.categories).agg(_union)
    common = set.intersection(*vocabulary)
    own = {leaf: found - set.union(*vocabulary.drop(leaf)) - common for leaf, found in vocabulary.items()}
    assert min(len(found) for found in own.values()) >= 8
    assert all(text[item] & own[items.categories[item]] for item in items.index)


@pytest.mark.parametrize("field", ["title", "description"])
def test_wording_says_nothing_about_the_next_item_inside_a_leaf(
    log: pd.DataFrame, items: pd.DataFrame, field: str
) -> None:
    """Neighbouring clicks in one leaf share as many words as clicks dealt out anew among all users of that leaf."""
    core, rng = clicked_core(log), np.random.default_rng(0)
    row, user = items.index.get_indexer(pd.Index(core.item)), core.user.to_numpy()
    leaf = items.categories.factorize()[0][row]
    pairs = (leaf[1:] == leaf[:-1]) & (user[1:] == user[:-1])
    before, after, leaf = row[:-1][pairs], row[1:][pairs], leaf[1:][pairs]
    words_IW = CountVectorizer(binary=True).fit_transform(items[field]).astype(float)
    shared_II = (words_IW @ words_IW.T).toarray()

    def shared(after: np.ndarray) -> float:
        return float(shared_II[before, after][before != after].mean())

    by_leaf = np.argsort(leaf, kind="stable")
    dealt = []
    for _ in range(40):
        other = np.empty_like(after)
        other[by_leaf] = after[np.lexsort((rng.random(len(leaf)), leaf))]
        dealt.append(shared(other))
    assert abs(shared(after) - np.mean(dealt)) < 4 * np.std(dealt)


def test_raw_ids_and_titles_are_dealt_independently_of_popularity(
    simulated: tuple[Scenario, Items, Routes, Log],
) -> None:
    _, catalogue, _, log = simulated
    shown_I = np.bincount(log.item_E, minlength=len(catalogue.names_I)).astype(float)
    number_I = np.array([int(name[1:]) for name in catalogue.names_I])
    lengths_I = np.array([len(title) for title in catalogue.titles])
    for told_I in (number_I, lengths_I):
        assert abs(np.corrcoef(told_I, shown_I)[0, 1]) < 4 / np.sqrt(len(shown_I))


def test_every_line_of_the_item_file_is_json_of_its_own(raw: Path) -> None:
    lines = (raw / "items.jsonl").read_text().splitlines()
    assert [json.loads(line)["item"] for line in lines] == [f"v{number:05d}" for number in range(1000)]
