"""All stages of a made log run in turn, and a run that was stopped goes on with the stage that it was in."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.scale import whole
from benchmarks.scale.logs import Sizes


def test_numbers_may_have_a_unit() -> None:
    assert [whole.number(text) for text in ("7", "20k", "100M")] == [7, 20_000, 100_000_000]
    for text in ("", "M", "1G", "x"):
        with pytest.raises(ValueError, match="invalid literal"):
            whole.number(text)


def test_a_stage_that_has_a_row_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = Sizes(events=2_000, items=200, width=4)
    ran: list[str] = []

    def measure(stage: str, data: Path, work: Path, checkout: Path, settings: dict[str, Any]) -> dict[str, Any]:
        del data, work, checkout
        if stage == "count" and "count" not in ran:
            ran.append(stage)
            raise SystemExit("stopped")
        ran.append(stage)
        costs = {"cpu_seconds": 1.5, "wall_seconds": 2.0, "peak_rss_mib": len(ran), "peak_anonymous_mib": 1}
        return {"stage": stage, "settings": settings, **costs}

    monkeypatch.setattr(whole, "measure", measure)
    with pytest.raises(SystemExit, match="stopped"):
        whole.run_all(tmp_path, sizes, {"evaluate.users": 7})
    rows = whole.run_all(tmp_path, sizes, {"evaluate.users": 7})
    assert ran == ["ingest", "embed", "split", "count", "count", "quantize", "train", "evaluate"]
    assert [row["stage"] for row in rows] == list(whole.STAGES)
    assert rows[0]["settings"]["evaluate.users"] == 7
    assert Path(rows[0]["settings"]["embed.path"]).exists()
    assert rows[-1]["command"].endswith("--events 2000 --items 200 --width 4 --set evaluate.users=7")
    with pytest.raises(SystemExit, match="other sizes"):
        whole.run_all(tmp_path, Sizes(events=3_000, items=200, width=4), {})
