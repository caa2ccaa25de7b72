"""Actions from a raw log to data/splits, against a loop over the rows of the log."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from settings import read_params

from pipeline.actions import Actions, check_edges
from pipeline.artifacts import Splits
from pipeline.errors import UserError
from pipeline.exposures import Exposures
from pipeline.ingest.stage import run as ingest
from pipeline.split.action_values import item_medians
from pipeline.split.stage import run as split

Row = tuple[str, str, int, int, str]  # user, item, time, click, seconds
EDGES: dict[str, Any] = {"click": [1], "watch": [3, 10.5, 30]}


def random_rows(seed: int, rows: int = 900) -> list[Row]:
    rng = np.random.default_rng(seed)
    return [
        (
            f"u{rng.integers(12)}",
            f"i{rng.integers(15)}",
            int(rng.integers(500)),
            int(rng.random() < 0.6),
            "" if rng.random() < 0.1 else f"{rng.choice([3, 10.5, 30, rng.random() * 40]):.2f}",
        )
        for _ in range(rows)
    ]


def run_both(folder: Path, rows: list[Row], actions: Any, **sections: Any) -> tuple[Splits, Exposures | None]:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["user,item,timestamp,click,watch", *(",".join(map(str, row)) for row in rows)]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    settings = {"path": str(folder), "minimum": {"click": 1}, "k_core": 2, "actions": actions}
    params = read_params({"dataset": "custom", "ingest": settings, **sections})
    ingest(params, output=folder / "out", scratch=folder / "scratch")
    split(params, interactions=folder / "out", output=folder / "splits")
    return Splits.read(folder / "splits"), Exposures.read(folder / "splits")


def bucket(text: str, edges: list[float]) -> int:
    return sum(float(text) >= edge for edge in edges) if text else 0


@pytest.mark.parametrize("seed", range(2))
def test_exposures_and_their_actions_are_those_of_a_loop_over_the_log(tmp_path: Path, seed: int) -> None:
    rows = random_rows(seed)
    splits, exposures = run_both(tmp_path, rows, EDGES)
    assert exposures is not None
    users = list(dict.fromkeys(row[0] for row in rows if row[3]))
    items = list(dict.fromkeys(row[1] for row in rows if row[3]))
    expected = [
        (user, items.index(row[1]), row[2], row[3], bucket(row[4], [3, 10.5, 30]))
        for user in range(len(users))
        for row in sorted((row for row in rows if row[0] == users[user]), key=lambda row: row[2])
    ]
    got = zip(exposures.users_X(), exposures.items_X, exposures.timestamps_X, *exposures.actions_XA.T, strict=True)
    assert [tuple(map(int, row)) for row in got] == expected

    # the retrieval axis: the first click of each user and item
    firsts = []
    for user in range(len(users)):
        seen: set[int] = set()
        for row in (row for row in expected if row[0] == user and row[3]):
            if row[1] not in seen:
                firsts.append(row)
                seen.add(row[1])
    assert splits.actions_NA is not None
    assert [(int(item), *map(int, values)) for item, values in zip(splits.items_N, splits.actions_NA, strict=True)] == [
        (row[1], row[3], row[4]) for row in firsts
    ]
    assert splits.actions == exposures.actions == Actions(("click", "watch"), ((1.0,), (3.0, 10.5, 30.0)))

    # parts by time: 80% and 90% of all exposures, those of one moment together
    times = sorted(row[2] for row in expected)
    first, second = times[int(0.8 * len(times))], times[int(0.9 * len(times))]
    bounds = {"train": (-1, first), "valid": (first, second), "test": (second, 10**9)}
    for part, (begin, end) in bounds.items():
        assert exposures.part(part).tolist() == [i for i, row in enumerate(expected) if begin <= row[2] < end]


def test_shuffled_ties_move_actions_with_their_items(tmp_path: Path) -> None:
    rows = [(user, item, time // 100, click, watch) for user, item, time, click, watch in random_rows(3)]
    source, _ = run_both(tmp_path / "a", rows, EDGES)
    shuffled, exposures = run_both(tmp_path / "b", rows, EDGES, split={"ties": "shuffled"})
    assert source.actions_NA is not None
    assert shuffled.actions_NA is not None
    assert exposures is not None
    assert not np.array_equal(source.items_N, shuffled.items_N)
    for user in range(source.users):
        own = slice(source.offsets[user], source.offsets[user + 1])
        pairs = [
            sorted((int(item), *map(int, row)) for item, row in zip(s.items_N[own], actions_NA[own], strict=True))
            for s, actions_NA in ((source, source.actions_NA), (shuffled, shuffled.actions_NA))
        ]
        assert pairs[0] == pairs[1]


def test_dates_divide_exposures_under_leave_one_out_too(tmp_path: Path) -> None:
    rows = [(user, item, time * 86_400, click, watch) for user, item, time, click, watch in random_rows(4)]
    dates = {"valid_from": "1970-08-01", "test_from": "1971-02-01"}  # days 212 and 396
    _, exposures = run_both(tmp_path, rows, EDGES, split=dates)
    assert exposures is not None
    days = exposures.timestamps_X // 86_400
    assert (days[exposures.part("train")] < 212).all()
    assert (days[exposures.part("test")] >= 396).all()
    assert ((days[exposures.part("valid")] >= 212) & (days[exposures.part("valid")] < 396)).all()
    assert sum(len(exposures.part(part)) for part in ("train", "valid", "test")) == len(days)


def test_the_median_is_that_of_the_item_in_the_training_part(tmp_path: Path) -> None:
    rows = random_rows(5)
    _, exposures = run_both(tmp_path, rows, {"watch": "median"})
    _, numbers = run_both(tmp_path / "numbers", rows, {"watch": list(np.arange(0, 41, 0.5))})  # half seconds
    assert exposures is not None
    assert numbers is not None
    items = list(dict.fromkeys(row[1] for row in rows if row[3]))
    users = list(dict.fromkeys(row[0] for row in rows if row[3]))
    ordered = [row for user in users for row in sorted((r for r in rows if r[0] == user), key=lambda row: row[2])]
    training = set(exposures.part("train").tolist())
    for index, row in enumerate(ordered):
        watched = [float(ordered[i][4]) for i in training if ordered[i][1] == row[1] and ordered[i][4]]
        expected = bool(row[4]) and float(row[4]) > statistics.median(watched)
        assert exposures.actions_XA[index, 0] == expected, (items.index(row[1]), row)
    assert exposures.actions.labels[0].name == "watch>median"


def test_an_item_without_numbers_has_the_median_of_all() -> None:
    medians = item_medians(np.array([2, 2, 0, 0]), np.array([4.0, 8.0, 1.0, np.nan]), 4)
    assert medians.tolist() == [1.0, 4.0, 6.0, 4.0]


def test_without_actions_no_file_is_there_and_old_ones_go(tmp_path: Path) -> None:
    rows = random_rows(6)
    run_both(tmp_path / "never", rows, "")
    run_both(tmp_path / "once", rows, EDGES)
    assert (tmp_path / "once" / "splits" / "actions_NA.npy").exists()
    splits, exposures = run_both(tmp_path / "once", rows, "")
    assert splits.actions is None
    assert exposures is None
    for name in ("out", "splits"):
        never, once = (tmp_path / folder / name for folder in ("never", "once"))
        files = sorted(path.name for path in never.iterdir())
        assert files == sorted(path.name for path in once.iterdir())
        assert all((never / file).read_bytes() == (once / file).read_bytes() for file in files)


def test_a_column_that_the_log_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ingest\.actions names like, which is no action column"):
        run_both(tmp_path, random_rows(7, 30), {"like": [1]})


@pytest.mark.parametrize(
    ("edges", "message"),
    [((), "0 edges"), ((3.0, 1.0), "ascend"), ((1.0, 1.0), "ascend"), ((1.0, "median"), "alone")],
)
def test_wrong_edges_are_refused(edges: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_edges("click", edges)
