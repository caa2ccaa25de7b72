"""The published folder: one rename, the version before, and an alias that never ends elsewhere than the link."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated_world import World

from pipeline.errors import UserError
from pipeline.evaluate.stage import run as evaluate
from pipeline.results.ranks import RANKS_FILE, Ranks
from pipeline.results.registry import Registered
from pipeline.serving import publish
from pipeline.serving.publish import Published, add, current, held, move, point, prune, rollback, staged


class Registry:
    """The alias of a registry that keeps it in memory."""

    version: str | None = None

    def crown(self, registered: Registered | None, name: str) -> None:
        assert name == "shop"
        self.version = registered.version if registered else None


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr(publish, "crown", registry.crown)
    return registry


def version(folder: Path, model: str, registered: str | None = None) -> Published:
    """A version that nothing serves yet."""
    with staged(folder) as partial:
        partial.mkdir()
        (partial / "MLmodel").write_text(model)
        return add(folder, partial, model * 8, Registered("shop", registered) if registered else None)


def served(folder: Path) -> str:
    return (folder / "current/MLmodel").read_text()


def promote(folder: Path, model: str, registered: str) -> None:
    with held(folder):
        move(folder, version(folder, model, registered), "shop")


def test_the_link_moves_and_the_version_before_is_there(tmp_path: Path) -> None:
    for model in "abc":
        with held(tmp_path):
            point(tmp_path, version(tmp_path, model).version)
            prune(tmp_path)
    assert served(tmp_path) == "c"
    assert sorted(path.name for path in (tmp_path / "versions").iterdir()) == ["000002-bbbbbbbb", "000003-cccccccc"]
    assert rollback(tmp_path).model == "bbbbbbbb"
    assert served(tmp_path) == "b"
    with pytest.raises(UserError, match="no version before 000002"):
        rollback(tmp_path)


def test_a_version_that_was_rolled_back_from_gives_no_number_to_another(tmp_path: Path) -> None:
    for model in "ab":
        with held(tmp_path):
            point(tmp_path, version(tmp_path, model).version)
    rollback(tmp_path)
    assert version(tmp_path, "c").version == "000003-cccccccc"


def test_alias_and_link_move_together_forward_and_back(tmp_path: Path, registry: Registry) -> None:
    promote(tmp_path, "a", "1")
    promote(tmp_path, "b", "2")
    assert (served(tmp_path), registry.version) == ("b", "2")
    rollback(tmp_path)
    assert (served(tmp_path), registry.version) == ("a", "1")


@pytest.mark.parametrize("killed_at", ["crown", "point", "prune"])
@pytest.mark.parametrize("back", [False, True])
def test_a_move_that_was_killed_anywhere_is_completed_by_the_next_command(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, killed_at: str, back: bool
) -> None:
    promote(tmp_path, "a", "1")
    if back:
        promote(tmp_path, "b", "2")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(publish, killed_at, killed)
        with pytest.raises(KeyboardInterrupt):
            rollback(tmp_path) if back else promote(tmp_path, "b", "2")
    with held(tmp_path):
        pass
    assert (served(tmp_path), registry.version) == (("a", "1") if back else ("b", "2"))
    assert not (tmp_path / "promotion.json").exists()


def test_a_version_whose_making_was_killed_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "versions/4711.partial"
    left.mkdir(parents=True)
    with held(tmp_path):
        assert not left.exists()
    assert current(tmp_path) is None


def test_nothing_published_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is published"):
        rollback(tmp_path)


def test_what_is_published_says_what_it_is(tmp_path: Path) -> None:
    made = version(tmp_path, "a", "3")
    facts = json.loads((tmp_path / "versions" / made.version / "published.json").read_text())
    assert facts == {"model": "aaaaaaaa", "previous": None, "registered": {"name": "shop", "version": "3"}}


def test_a_model_is_published_again_where_its_rule_for_seen_items_has_changed(world: World, tmp_path: Path) -> None:
    folder, path = tmp_path / "served", world.paths["reports"] / RANKS_FILE
    paths = {name: world.paths[name] for name in ("generator", "splits", "reports")}

    def evaluated(*, filter_seen: bool) -> None:
        ranks = Ranks.read(path)
        Ranks(ranks.users, replace(ranks.origin, filter_seen=filter_seen)).write(path)

    evaluate(world.params, **world.inputs)
    evaluated(filter_seen=False)
    first, new = publish.publish(folder, **paths)
    assert new
    assert publish.publish(folder, **paths) == (first, False)
    evaluated(filter_seen=True)
    second, new = publish.publish(folder, **paths)
    assert new
    assert (second.model, second.previous) == (first.model, first.version)
    assert "filter_seen" in (folder / "current/MLmodel").read_text()
    assert publish.publish(folder, **paths) == (second, False)
    path.unlink()  # a model without an evaluation answers with seen items
    assert publish.publish(folder, **paths)[1]
