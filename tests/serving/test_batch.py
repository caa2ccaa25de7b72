"""Recommendations for all users: what `recommend` says of each, whole or not at all, and continued after a stop."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from evaluated_world import USERS, World

from pipeline.artifacts import write_parquet
from pipeline.errors import UserError
from pipeline.evaluate.recommend import recommend
from pipeline.serving import batch
from pipeline.serving.batch import recommend_all


@pytest.fixture(autouse=True)
def _here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The world is the current project, in parts of a few users."""
    monkeypatch.chdir(world.root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(batch, "PART_USERS", 15)


def everybody(world: World, **arguments: Any) -> pd.DataFrame:
    output = world.root / "out/recs.parquet"
    settings = {**world.paths, "interactions": world.root / "data/interactions", "device": "cpu", **arguments}
    recommend_all(output, **settings)
    return pd.read_parquet(output)


@pytest.mark.parametrize(("k", "filter_seen"), [(5, True), (99, False)])
def test_each_user_gets_what_recommend_says(world: World, k: int, filter_seen: bool) -> None:
    table = everybody(world, k=k, filter_seen=filter_seen)
    assert table.columns.tolist() == ["user", "rank", "item", "score"]
    assert table.dtypes[["rank", "score"]].astype(str).tolist() == ["int32", "float32"]
    assert table["user"].unique().tolist() == [f"user-{user}" for user in range(USERS)]
    for user in (0, 15, USERS - 1):
        mine = table[table["user"] == f"user-{user}"]
        settings: dict[str, Any] = {**world.paths, "interactions": world.root / "data/interactions"}
        rows = recommend(user=f"user-{user}", k=k, filter_seen=filter_seen, **settings)
        assert mine["item"].tolist() == [row.item for row in rows]
        assert mine["rank"].tolist() == list(range(1, len(rows) + 1))
        assert mine["score"].tolist() == pytest.approx([row.score for row in rows], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("recs.csv", "recs.csv would hold Parquet"),
        ("/proc/recs.parquet", "/proc/recs.parquet cannot be written: No such file"),
        ("generator/config.json/recs", "config.json/recs cannot be written: "),
        ("", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    world: World, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "load_generator", None)  # nothing is loaded
    settings: dict[str, Any] = {**world.paths}
    with pytest.raises(UserError, match=re.escape(said)):
        recommend_all(world.paths["generator"].parent / name, **settings)


def test_a_list_names_the_users_and_unknown_ones_are_told(
    world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    listed = tmp_path / "users.txt"
    listed.write_text("\ufeffuser-9\n\n user-3 \nnobody\nuser-9\n")
    table = everybody(world, users=listed, k=2)
    assert table["user"].tolist() == ["user-3", "user-3", "user-9", "user-9"]
    assert "1 of 4 users are not in the log and are left out: nobody" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "names no user"), ("usr-3\n", "user 'usr-3' is not known"), (None, "is not here"), (b"\xff\xfe\xff", "read")],
)
def test_a_list_that_names_nobody_is_refused(
    world: World, tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    listed = tmp_path / "users.txt"
    if content is not None:
        listed.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        everybody(world, users=listed)
    assert not (world.root / "out").exists()


def test_a_stopped_run_goes_on_where_it_was_and_leaves_the_old_file_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = everybody(world, k=4)
    old = (world.root / "out/recs.parquet").read_bytes()
    written: list[Path] = []

    def stops_at_the_second(path: Path, table: pd.DataFrame) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write_parquet(path, table)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "write_part", stops_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            everybody(world, k=4)
    assert (world.root / "out/recs.parquet").read_bytes() == old
    pd.testing.assert_frame_equal(everybody(world, k=4), whole)
    assert "15 of 40 users are done already" in capsys.readouterr().err
    assert not list((world.root / ".sidpipe").rglob("*.parquet"))
    assert [path.name for path in (world.root / "out").iterdir()] == ["recs.parquet"]


def test_another_question_does_not_take_the_parts_of_a_stopped_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            everybody(world, k=4)
    assert everybody(world, k=2)["rank"].max() == 2


@pytest.mark.parametrize("arguments", [{"k": 0}, {"k": 30, "beam": 20}])
def test_a_beam_that_cannot_hold_the_answer_is_refused(world: World, arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="and the beam"):
        everybody(world, **arguments)


def test_a_model_of_another_log_is_refused(world: World) -> None:
    replace(world.splits, items_N=world.splits.items_N[::-1].copy()).write(world.paths["splits"])
    with pytest.raises(UserError, match="trained on other splits"):
        everybody(world)
