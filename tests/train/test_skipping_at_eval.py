"""skipgr.at_eval: what is skipped in histories is skipped in validation, evaluation and recommend too."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from tiny_world import TinyWorld, interrupt, make_params

from pipeline.artifacts import write_parquet
from pipeline.config import Params
from pipeline.count.stage import run as count
from pipeline.decoding.exhaustive import score_catalogue
from pipeline.decoding.ranking import DecodingMethod, rank_targets
from pipeline.errors import UserError
from pipeline.evaluate import stage
from pipeline.evaluate.explain import ItemTokens, explain
from pipeline.evaluate.recommend import recommend
from pipeline.generator import Generator, load_generator
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories
from pipeline.training.validation import Validation

if TYPE_CHECKING:
    from pipeline.packing.kept import EvalSkips

LEVELS, MAX_HISTORY, RATIO = 3, 6, 0.4
KINDS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "items": {"skipgr": {"input_unit": "item"}},
    "rastp": {"strategy": "rastp+skipgr", "skipgr": {"input_unit": "item"}},
    "intrr": {"strategy": "intrr+skipgr", "skipgr": {"input_unit": "item"}},
    "causal": {"skipgr": {"input_unit": "item"}, "backbone": {"name": "hstu"}},
}


def skipping(kind: str = "tokens", at_eval: bool = True, **skipgr: Any) -> Params:
    made = KINDS[kind]
    return make_params(
        strategy=made.get("strategy", "skipgr"),
        train={"max_windows": 900, "checkpoint_every": 4},
        backbone={"dropout": 0.0, **made.get("backbone", {})},
        rastp={"after_layer": 1},
        evaluate={"decoding": "exact", "bootstrap_samples": 50},
        skipgr={"token_ratio": RATIO, "apply_to": "both", **made.get("skipgr", {}), "at_eval": at_eval, **skipgr},
    )


def cut(world: TinyWorld, skip_ML: np.ndarray, user: int, end: int) -> list[tuple[int, list[bool]]]:
    """The user's items before position `end` that are left: (position, which of its codes and separator stay)."""
    positions = range(max(int(world.splits.offsets[user]), end - MAX_HISTORY), end)
    left = [(position, [not skipped for skipped in skip_ML[position].tolist()]) for position in positions]
    left = [(position, codes) for position, codes in left if any(codes)] or [(end - 1, [True] * LEVELS)]
    return [(position, [*codes, True]) for position, codes in left]


def slow_scores(world: TinyWorld, loaded: Generator, left: list[tuple[int, list[bool]]], kind: str) -> np.ndarray:
    """Log-probability of every item after a history that was cut by hand."""
    separators, positions = loaded.config["backbone"]["separators"], [position for position, _ in left]
    kept = np.array([codes if separators else codes[:-1] for _, codes in left])
    histories = Histories.pack(
        world.splits.items_N[positions],
        np.array([0, len(left)]),
        times_N=world.splits.timestamps_N[positions],
        kept_NS=kept if kind == "tokens" else None,
    )
    return score_catalogue(loaded.model, histories)[0].numpy()


def slow_rank(scores: np.ndarray, target: int, beam: int) -> int:
    rank = 1 + int((scores > scores[target]).sum()) + int((scores[:target] == scores[target]).sum())
    return rank if rank <= beam else 0


def reports(world: TinyWorld, name: str = "run") -> Path:
    return world.folder / name / "reports"


def load(world: TinyWorld, name: str = "run") -> Generator:
    return load_generator(world.folder / name / "generator")


def evaluate(params: Params, world: TinyWorld) -> None:
    """Count, and evaluate the model of the run."""
    splits = world.folder / "splits"
    count(params, splits=splits, output=world.folder / "counting")
    stage.run(
        params,
        splits=splits,
        counting=world.folder / "counting",
        generator=world.folder / "run/generator",
        reports=reports(world),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_is_that_of_histories_cut_by_hand(world: TinyWorld, kind: str) -> None:
    params = skipping(kind)
    world.train(params)
    evaluate(params, world)
    found, loaded = pd.read_parquet(reports(world) / "ranks.parquet"), load(world)
    assert loaded.eval_skips is not None
    users, positions = world.splits.targets("test")
    differ = 0
    for user, end, rank in zip(users, positions, found["rank"], strict=True):
        target = int(world.splits.items_N[end])
        left = cut(world, loaded.eval_skips.skip_ML, user, end)
        assert rank == slow_rank(slow_scores(world, loaded, left, kind), target, params.evaluate.beam)
        whole = cut(world, np.zeros_like(loaded.eval_skips.skip_ML), user, end)
        differ += whole != left
    assert differ > 10
    assert found["history_length"].max() == MAX_HISTORY  # before anything is skipped


def test_beams_skip_as_exact_scores_do(world: TinyWorld) -> None:
    world.train(skipping())
    loaded = load(world)
    searches: list[tuple[DecodingMethod, EvalSkips | None]] = [
        ("constrained", loaded.eval_skips),
        ("exact", loaded.eval_skips),
        ("exact", None),
    ]
    for filter_seen in (False, True):
        beam, exact, whole = (
            rank_targets(
                loaded.model,
                loaded.catalogue,
                world.splits,
                "test",
                beam=40,
                decoding=decoding,
                filter_seen=filter_seen,
                eval_skips=eval_skips,
            ).ranks_U
            for decoding, eval_skips in searches
        )
        np.testing.assert_array_equal(beam, exact)
        assert not np.array_equal(exact, whole)
        np.testing.assert_array_equal(exact == 0, whole == 0)  # seen items are those of the whole history


def test_the_table_is_the_rule_of_training_on_the_last_scores(world: TinyWorld) -> None:
    world.train(skipping())
    skip_ML = load_file(world.folder / "run" / "generator" / "skips.safetensors")["skip"]
    scores_ML = load_file(reports(world) / "skipped" / "store.safetensors")["scores"]
    scored = np.flatnonzero(scores_ML[:, 0] >= 0)
    assert skip_ML.dtype == bool
    for level in range(LEVELS - 1):
        surest = sorted(scored.tolist(), key=lambda row: float(scores_ML[row, level]))
        assert np.flatnonzero(skip_ML[:, level]).tolist() == sorted(surest[: int(RATIO * len(scored) + 0.5)])
    np.testing.assert_array_equal(skip_ML[:, LEVELS - 1], skip_ML[:, LEVELS - 2])  # the digit follows the last code
    for part in ("valid", "test"):
        assert not skip_ML[world.splits.targets(part)[1]].any()


@pytest.mark.parametrize("kind", ["tokens", "items"])
def test_validation_is_that_of_histories_cut_by_hand(
    world: TinyWorld, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    tables: list[np.ndarray] = []  # one table per validation
    measure = Validation.measure

    def noting(self: Validation, model: Backbone) -> dict[str, float]:
        eval_skips = self.strategy.sampler.eval_skips()
        assert eval_skips is not None
        tables.append(eval_skips.skip_ML)
        return measure(self, model)

    monkeypatch.setattr(Validation, "measure", noting)
    best_step = world.train(skipping(kind))["best_step"]
    history, loaded = pd.read_csv(reports(world) / "history.csv"), load(world)
    row = int(np.flatnonzero(history["step"] == best_step)[0])
    assert len(tables) == len(history) > 1
    assert not np.array_equal(tables[0], tables[1])
    losses, hits = [], []
    for user, end in zip(*world.splits.targets("valid"), strict=True):
        target = int(world.splits.items_N[end])
        scores = slow_scores(world, loaded, cut(world, tables[row], user, end), kind)
        losses.append(-scores[target])
        hits.append(slow_rank(scores, target, 10) > 0)
    assert history["valid_loss"][row] == pytest.approx(np.mean(losses), abs=1e-5)
    assert history["recall_at_10"][row] == pytest.approx(np.mean(hits), abs=1e-6)


def test_training_itself_is_the_same_with_and_without(world: TinyWorld) -> None:
    for name, at_eval in (("on", True), ("off", False)):
        world.train(skipping(at_eval=at_eval), name)
    on, off = (pd.read_csv(reports(world, name) / "history.csv") for name in ("on", "off"))
    assert on["train_loss"].tolist() == off["train_loss"].tolist()
    assert on["valid_loss"].tolist() != off["valid_loss"].tolist()
    assert (reports(world, "on") / "passes.csv").read_bytes() == (reports(world, "off") / "passes.csv").read_bytes()


def test_without_it_nothing_is_written_and_an_earlier_table_goes(world: TinyWorld) -> None:
    world.train(skipping())
    assert "skips.safetensors" in world.written()
    world.train(skipping(at_eval=False))
    assert "skips.safetensors" not in world.written()
    assert load(world).eval_skips is None
    world.train(skipping(token_ratio=0.0))  # skips sequences alone
    assert load(world).eval_skips is None


def test_a_run_that_was_stopped_ends_with_the_same_table(world: TinyWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    params = skipping(anneal_epochs=1)
    world.train(params, "straight")
    interrupt(world, params, 14, monkeypatch, "stopped")
    world.train(params, "stopped")
    assert world.written("stopped") == world.written("straight")
    eval_skips = load(world, "stopped").eval_skips
    assert eval_skips is not None
    assert eval_skips.skip_ML.any()  # though the last epoch skips nothing


@pytest.mark.parametrize("kind", ["tokens", "items"])
def test_a_user_is_seen_as_in_evaluation_and_a_list_of_items_whole(world: TinyWorld, tmp_path: Path, kind: str) -> None:
    world.train(skipping(kind, token_ratio=0.7))
    loaded, splits = load(world), world.splits
    write_parquet(
        tmp_path / "known" / "users.parquet",
        pd.DataFrame(
            {"user_id": np.arange(splits.users, dtype=np.int32), "raw_id": [f"u{user}" for user in range(splits.users)]}
        ),
    )
    folders: dict[str, Any] = {
        "interactions": tmp_path / "known",
        "splits": world.folder / "splits",
        "generator": world.folder / "run" / "generator",
        "reports": reports(world),
    }
    assert loaded.eval_skips is not None
    differ = 0
    for user in range(12):
        first, end = int(splits.offsets[user]), int(splits.offsets[user + 1])
        left = cut(world, loaded.eval_skips.skip_ML, user, end)
        whole = cut(world, np.zeros_like(loaded.eval_skips.skip_ML), user, end)
        shown = recommend(user=f"u{user}", k=40, **folders)
        listed = recommend(history=[f"B{item:03d}" for item in splits.items_N[first:end]], k=40, **folders)
        for found, expected in ((shown, left), (listed, whole)):
            scores = slow_scores(world, loaded, expected, kind)
            np.testing.assert_allclose([row.score for row in found], np.sort(scores)[::-1], rtol=1e-4)
        differ += [row.score for row in shown] != [row.score for row in listed]
        _, rows = explain(user=f"u{user}", **folders)
        names = [f"B{splits.items_N[position]:03d}" for position, _ in left]
        assert [row.item for row in rows if any(cast("ItemTokens", row).kept)] == names
    assert differ > 3


def test_a_model_without_its_table_is_refused(world: TinyWorld) -> None:
    params = skipping()
    world.train(params)
    path = world.folder / "run" / "generator" / "skips.safetensors"
    (path.parent / "manifest.json").unlink()
    skip_ML = load_file(path)["skip"]
    save_file({"skip": skip_ML[:, :-1].copy()}, path)
    with pytest.raises(UserError, match="3 levels"):
        load(world)
    save_file({"skip": skip_ML[:-1].copy()}, path)
    with pytest.raises(UserError, match="other splits"):
        evaluate(params, world)
    path.unlink()
    with pytest.raises(UserError, match=r"skips\.safetensors is not here"):
        load(world)


def test_it_needs_inputs_that_are_skipped() -> None:
    with pytest.raises(UserError, match=r"skipgr\.apply_to=input or both"):
        skipping(apply_to="loss")
