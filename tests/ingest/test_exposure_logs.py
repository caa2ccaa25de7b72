"""A log of exposures as KuaiRand's publishers write it, read by the preset of that name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from raw_logs import Ingest

from pipeline.errors import UserError

PRESET = Path(__file__).resolve().parents[2] / "presets" / "kuairand.yaml"


def test_the_preset_reads_kuairand_logs(tmp_path: Path, ingest: Ingest) -> None:
    rng = np.random.default_rng(0)
    rows = 3000
    log = pd.DataFrame(
        {
            "user_id": rng.integers(0, 20, rows),
            "video_id": rng.integers(0, 25, rows),
            "date": 20220421,
            "hourmin": rng.integers(0, 2359, rows),
            "time_ms": 1_650_000_000_000 + rng.integers(0, 10**9, rows),
            "is_click": rng.integers(0, 2, rows),
            "is_like": (rng.random(rows) < 0.1).astype(int),
            "is_follow": 0,
            "long_view": rng.integers(0, 2, rows),
            "play_time_ms": rng.integers(0, 60_000, rows),
            "duration_ms": rng.integers(1000, 90_000, rows),
            "tab": 1,
        }
    )
    for part, name in enumerate(("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")):
        log[part * 1500 : (part + 1) * 1500].to_csv(tmp_path / name, index=False)
    log.to_csv(tmp_path / "log_random_4_22_to_5_08_pure.csv", index=False)  # not read
    settings = {**yaml.safe_load(PRESET.read_text())["ingest"], "path": str(tmp_path)}
    done = ingest(**settings)
    assert done.summary["rows_read"] == rows

    clicks = log[log.is_click == 1].drop_duplicates(["user_id", "video_id"])
    assert done.summary["interactions"] == len(clicks)  # every user and video has five clicks or more
    exposures = pd.read_parquet(tmp_path / "output" / "interactions" / "exposures.parquet")
    assert list(exposures)[4:] == ["is_click", "is_like", "long_view", "play_time_ms"]
    assert sorted(exposures.source_row) == list(range(rows))
    for name in exposures.columns[4:]:
        assert exposures[name].tolist() == log[name].to_numpy()[exposures.source_row].tolist()
    assert exposures.groupby("user_id").timestamp.is_monotonic_increasing.all()


def likes(values: list[str]) -> pd.DataFrame:
    """A log of 60 users and 50 items with this column."""
    row = np.arange(len(values))
    times = 1_700_000_000 + 60 * row
    return pd.DataFrame({"user": row % 60, "item": row * 7 % 50, "timestamp": times, "like": values}, dtype=object)


@pytest.mark.parametrize(("parts", "empty"), [(1, 250_000), (2, 3_000)])
def test_an_action_that_comes_late_in_the_log_is_read(parts: int, empty: int, tmp_path: Path, ingest: Ingest) -> None:
    """In the first rows, or the first of two files, the column is empty."""
    log = likes([""] * empty + ["0", "1"] * 2_000)
    for part, rows in enumerate((log[:empty], log[empty:]) if parts == 2 else (log,)):
        rows.to_csv(tmp_path / f"interactions.{part}.csv", index=False)
    done = ingest(path=str(tmp_path), actions={"like": [1]})
    assert done.summary["columns"]["like"] == "like"
    exposures = pd.read_parquet(tmp_path / "output" / "interactions" / "exposures.parquet")
    assert exposures["like"].value_counts().to_dict() == {0: 2_000, 1: 2_000}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["good", "bad", "great"], "holds no numbers, but texts such as 'good' in all usable rows"),
        (["", ""], "has no value in all usable rows"),
    ],
)
@pytest.mark.parametrize("columns", [{}, {"like": "like"}])
def test_an_action_without_a_number_is_refused(
    values: list[str], said: str, columns: dict[str, str], tmp_path: Path, ingest: Ingest
) -> None:
    likes(values * 900).to_csv(tmp_path / "interactions.csv", index=False)
    with pytest.raises(UserError, match=said):
        ingest(path=str(tmp_path), actions={"like": [1]}, columns=columns)
