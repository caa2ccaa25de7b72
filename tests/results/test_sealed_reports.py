"""reports/ holds the files of one run: a flipped bit, or a file of another run, is refused by whoever reads it."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluated_world import TIMINGS, World

from pipeline.artifacts import read_json, write_json
from pipeline.errors import UserError
from pipeline.evaluate.stage import run
from pipeline.manifest import sealed, unsealed
from pipeline.results.identity import read_result
from pipeline.results.runs import read_run


def flip(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(7)
    path.write_bytes(content)


@pytest.fixture
def trained(world: World) -> World:
    """The reports of train, of which timings.json is the last."""
    reports = world.paths["reports"]
    (reports / "history.csv").write_text("step,recall_at_10\n200,0.1\n")
    (reports / "skipped").mkdir()
    (reports / "skipped/epochs.csv").write_text("epoch\n1\n")
    write_json(reports / "timings.json", sealed(TIMINGS, reports, ["history.csv", "skipped/epochs.csv"]))
    return world


@pytest.mark.parametrize("name", ["history.csv", "skipped/epochs.csv", "timings.json"])
def test_evaluate_refuses_reports_of_another_training(trained: World, name: str) -> None:
    rng = np.random.default_rng(0)
    path = trained.paths["reports"] / name
    whole = path.read_bytes()
    for _ in range(20):
        flip(path, rng)
        with pytest.raises(UserError, match=name) as caught:
            run(trained.params, **trained.inputs)
        assert "\n" not in caught.value.what
        assert not (trained.paths["reports"] / "metrics.json").exists()
        path.write_bytes(whole)
    path.unlink()
    if name != "timings.json":
        run(trained.params, **trained.inputs)  # evaluate needs none of the others


def test_compare_refuses_a_flipped_bit_and_files_of_two_runs(trained: World) -> None:
    reports = trained.paths["reports"]
    run(trained.params, **trained.inputs)
    assert read_run(str(reports)).figures["train_seconds"] == TIMINGS["train_seconds"]
    rng = np.random.default_rng(1)
    for name in ("metrics.json", "details.json", "timings.json"):
        whole = (reports / name).read_bytes()
        figures = json.loads(whole)
        digits = [at for at, byte in enumerate(whole) if chr(byte).isdigit()]
        for at in rng.choice(digits, 10):
            changed = bytearray(whole)
            changed[at] = ord(str((int(chr(whole[at])) + 1) % 10))
            if json.loads(changed) == figures:  # the seventeenth digit of a measured time may name the same number
                continue
            (reports / name).write_bytes(changed)
            with pytest.raises(UserError):
                read_run(str(reports))
        (reports / name).write_bytes(whole)
        assert json.loads(whole) == figures
    # Training alone again, by hand: its figures are of another model than the metrics.
    write_json(reports / "timings.json", sealed({**TIMINGS, "train_seconds": 9.0}, reports, ["history.csv"]))
    with pytest.raises(UserError, match=r"timings\.json of .* is not the file that details\.json lists") as caught:
        read_run(str(reports))
    assert "python -m pipeline evaluate" in caught.value.fix


def test_track_refuses_what_its_lock_does_not_name(project: Path) -> None:
    """dvc.lock of this project records metrics.json alone, as after stages by hand."""
    reports = project / "reports"

    def read() -> None:
        read_result(reports, project / "data/interactions", project / "data/sids", project / "dvc.lock")

    names = ["metrics.json", "by_history.csv", "by_popularity.csv"]
    write_json(reports / "details.json", sealed(read_json(reports / "details.json"), reports, names))
    write_json(reports / "timings.json", sealed({"train_seconds": 1.0}, reports, ["history.csv", "kept_by_level.csv"]))
    read()
    for name in ("by_history.csv", "by_popularity.csv", "history.csv", "kept_by_level.csv"):
        whole = (reports / name).read_text()
        digit = next(letter for letter in whole if letter in "12345678")
        (reports / name).write_text(whole.replace(digit, chr(ord(digit) + 1)))
        with pytest.raises(UserError, match=f"{name} is not the file that"):
            read()
        (reports / name).write_text(whole)


def test_files_of_an_earlier_version_have_no_checksums(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a\n")
    path = tmp_path / "details.json"
    assert unsealed(path, {"x": 1.5}, "evaluate") == {"x": 1.5}
    assert unsealed(path, sealed({"x": 1.5}, tmp_path, ["a.csv"]), "evaluate") == {"x": 1.5}
    assert unsealed(path, {"x": 1.5, "files": ["odd"]}, "evaluate") == {"x": 1.5}
