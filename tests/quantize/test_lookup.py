"""An item's Semantic ID in words, against a count over all items."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.artifacts import Sids, write_parquet
from pipeline.errors import UserError
from pipeline.quantize.lookup import ItemSid, look_up, sid_text

ITEMS = 40


@pytest.fixture(params=[True, False], ids=["digit", "no digit"])
def sids(request: pytest.FixtureRequest, tmp_path: Path) -> Sids:
    """Random codes of two levels, and items of which every third has no title."""
    codes = np.random.default_rng(0).integers(0, 3, (ITEMS, 2))
    digits = [codes[:item].tolist().count(codes[item].tolist()) for item in range(ITEMS)]
    columns = np.column_stack([codes, digits]) if request.param else codes
    written = Sids(columns.astype(np.int32), (3, 3, 40)[: columns.shape[1]], {}, {}, digit=request.param)
    written.write(tmp_path / "sids")
    write_parquet(
        tmp_path / "interactions/items.parquet",
        pd.DataFrame(
            {
                "item_id": np.arange(ITEMS, dtype=np.int32),
                "raw_id": [f"v{item:02d}" for item in range(ITEMS)],
                "title": [None if item % 3 == 0 else f"Title {item}" for item in range(ITEMS)],
            }
        ),
    )
    return written


def ask(folder: Path, item: str, titles: int = 5) -> ItemSid:
    return look_up(item, titles, interactions=folder / "interactions", sids=folder / "sids")


def test_each_prefix_counts_its_items_and_names_others(sids: Sids, tmp_path: Path) -> None:
    codes = sids.codes_IL[:, :2].tolist()
    for item in (7, 12):
        found = ask(tmp_path, f"v{item:02d}")
        assert found.codes == codes[item]
        assert found.digit == (codes[:item].count(codes[item]) if sids.digit else None)
        assert found.title == ("" if item % 3 == 0 else f"Title {item}")
        for length, prefix in enumerate(found.prefixes, start=1):
            below = [other for other in range(ITEMS) if codes[other][:length] == codes[item][:length]]
            names = [f"v{other:02d}" if other % 3 == 0 else f"Title {other}" for other in below if other != item]
            assert (prefix.codes, prefix.items, prefix.others) == (codes[item][:length], len(below), names[:5])


def test_the_report_says_how_many_are_not_shown(sids: Sids, tmp_path: Path) -> None:
    found = ask(tmp_path, "v07", titles=1)
    text = sid_text(found)
    assert text.splitlines()[0] == "v07  Title 7"
    assert f"{found.codes[0]}: {found.prefixes[0].items} items, among them" in text
    assert f"    and {found.prefixes[0].items - 2} more" in text
    assert ("deduplication digit" in text) == sids.digit


@pytest.mark.usefixtures("sids")
def test_an_unknown_item_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="item 'v7' is not known") as caught:
        ask(tmp_path, "v7")
    assert "did you mean" in caught.value.fix


def test_sids_of_another_log_are_refused(sids: Sids, tmp_path: Path) -> None:
    Sids(sids.codes_IL[:5], sids.widths, {}, {}, sids.digit).write(tmp_path / "sids")
    with pytest.raises(UserError, match="lists 40 items"):
        ask(tmp_path, "v07")
