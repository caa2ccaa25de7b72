"""A log of exposures as KuaiRand's publishers write it, read by the preset of that name."""

from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from raw_logs import Ingest

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
