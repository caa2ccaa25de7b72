"""What names a result, and when its files do not belong together."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from finished_result import write_result

from pipeline.errors import UserError
from pipeline.metric_names import MEASURED
from pipeline.results.identity import TABLES, Result, _rows, read_result


def read() -> Result:
    return read_result(Path("reports"), Path("data/interactions"), Path("data/sids"), Path("dvc.lock"))


def test_a_result_holds_what_the_files_hold(project: Path) -> None:
    result = read()
    files = [json.loads((project / f"reports/{name}.json").read_text()) for name in ("metrics", "details")]
    assert result.metrics == files[0] | files[1]
    assert [row["step"] for row in result.history] == list(range(200, 1601, 200))
    assert result.history[0]["valid_loss"] == pytest.approx(11 - 200 / 300, abs=1e-4)
    assert result.hashes == {
        "interactions": "c0ffee",
        "sids": "51d5",
        "splits": "5911",
        "model": "aa11",
        "ranks": "4a4c5",
    }
    assert result.dataset["users"] == 2000


@pytest.mark.parametrize("measured", sorted(MEASURED))
def test_a_measurement_makes_no_other_result(project: Path, measured: str) -> None:
    key = read().key
    changed: dict[str, Any] = {measured: 123.456}
    write_result(project, seed=1, **changed)
    assert read().key == key


def test_another_number_model_or_data_makes_another_result(project: Path) -> None:
    keys = {read().key}
    write_result(project, seed=1, recall_at_10=0.5)
    keys.add(read().key)
    write_result(project, seed=1, model_hash="bb22")
    keys.add(read().key)
    lock = project / "dvc.lock"
    for old, new in (("c0ffee", "decaf"), ("51d5", "51d6"), ("5911", "5912"), ("4a4c5", "4a4c6")):
        lock.write_text(lock.read_text().replace(old, new))
        keys.add(read().key)
    assert len(keys) == 7


def test_metrics_that_dvc_did_not_write_are_refused(project: Path) -> None:
    """A stage run by hand changes its files and not dvc.lock: the hashes would name another model."""
    (project / "reports/metrics.json").write_text('{"recall_at_10": 0.9}')
    with pytest.raises(UserError, match=r"not the file that dvc\.lock records") as caught:
        read()
    assert "dvc repro" in caught.value.fix


@pytest.mark.parametrize("content", [None, "", "stages: {}", "stages: {evaluate: {outs: []}}", "{"])
def test_a_lock_that_tells_nothing_is_refused(project: Path, content: str | None) -> None:
    lock = project / "dvc.lock"
    lock.unlink()
    if content is not None:
        lock.write_text(content)
    with pytest.raises(UserError, match="does not record what was evaluated"):
        read()


@pytest.mark.parametrize(
    "name",
    [
        "reports/metrics.json",
        "reports/history.csv",
        "reports/by_history.csv",
        "reports/by_popularity.csv",
        "reports/kept_by_level.csv",
        "data/sids/levels.csv",
    ],
)
def test_a_missing_report_is_named(project: Path, name: str) -> None:
    (project / name).unlink()
    with pytest.raises(UserError, match=f"{name} is not here"):
        read()


TABLES_OF_REPORTS = ["reports/history.csv", "reports/by_history.csv", "reports/by_popularity.csv"]
TABLES_OF_REPORTS += ["reports/kept_by_level.csv", "data/sids/levels.csv"]


@pytest.mark.parametrize("name", TABLES_OF_REPORTS)
def test_a_table_damaged_anywhere_is_read_or_named(project: Path, name: str) -> None:
    """Cut, zeroed and with a changed byte, at every position; no other error, and nothing that the page cannot show."""
    path = project / name
    whole = path.read_bytes()
    damaged = [whole[:at] for at in range(len(whole))]
    damaged += [whole[:at] + bytes(len(whole[at : at + 8])) + whole[at + 8 :] for at in range(0, len(whole), 5)]
    damaged += [whole[:at] + bytes([byte]) + whole[at + 1 :] for at in range(0, len(whole), 3) for byte in b'\xff",\nx']
    said = []
    for content in damaged:
        path.write_bytes(content)
        try:
            rows = _rows(path, TABLES[path.name])
        except UserError as error:
            said.append(error.what)
        else:
            assert all(isinstance(value, str) for row in rows for value in row.values())
    assert all(line.startswith(f"{path} cannot be read: ") and "\n" not in line for line in said)
    assert len(said) > len(whole) / 4


def test_a_report_is_the_one_that_dvc_recorded(project: Path) -> None:
    """A changed digit makes a table that can be read; only its checksum tells."""
    lock, path = project / "dvc.lock", project / "reports/by_history.csv"
    stages = yaml.safe_load(lock.read_text())
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    stages["stages"]["evaluate"]["outs"].append({"path": "reports/by_history.csv", "md5": digest})
    lock.write_text(yaml.safe_dump(stages))
    read()
    path.write_text(path.read_text().replace(".12", ".13"))
    with pytest.raises(UserError, match=r"by_history\.csv is not the file that dvc\.lock records") as caught:
        read()
    assert "dvc repro" in caught.value.fix
