"""`python -m pipeline migrate`: yesterday's params.yaml gets today's keys, and loses nothing."""

import io
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML
from settings import raw_params

from pipeline.config import load_params
from pipeline.errors import UserError
from pipeline.ingest.config import COLUMNS
from pipeline.presets.apply import apply_preset
from pipeline.presets.migrate import add_missing_keys

KEYS = [f"{name}.{key}" for name, section in raw_params().items() if isinstance(section, dict) for key in section]
SECTIONS = list(raw_params())


def without(text: str, key: str, comment: bool = True) -> str:
    """params.yaml without an entry; comment: and without the lines above that speak of it."""
    section, _, name = key.rpartition(".")
    head = re.search(rf"^{section}:\n" if section else "", text, re.MULTILINE)
    assert head
    above = r"(^  #.*\n)*" if section else r"\n?(^#.*\n)*"
    entry = rf"^  {name}:.*\n(  - .*\n|    .*\n)*" if section else rf"^{name}:.*\n(  .*\n)*"
    found = re.compile((above if comment else "") + entry, re.MULTILINE).search(text, head.end())
    assert found
    return text[: found.start()] + text[found.end() :]


def dvc_writes(text: str) -> str:
    writer = YAML()
    writer.default_flow_style = False
    stream = io.StringIO()
    writer.dump(writer.load(text), stream)
    return stream.getvalue()


@pytest.mark.parametrize("key", ["train.compile", "intrr", "ingest.path", "track.log_model", "seed", "skipgr", "track"])
def test_a_key_or_section_comes_back_with_its_comment_at_its_position(key: str, project: Path) -> None:
    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(without(before, key))
    assert key not in yaml.safe_load((project / "params.yaml").read_text())
    added = add_missing_keys()
    assert (project / "params.yaml").read_text() == before
    assert [line.key for line in added] == [name for name in KEYS if name.startswith(key)] or [key]
    assert add_missing_keys() == []


def test_empty_mappings_become_what_s_can_set(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    columns = "".join(f"    {name}: ''\n" for name in COLUMNS)
    older = before.replace(f"  columns:\n{columns}", "  columns: {}\n").replace("  minimum: ''\n", "  minimum: {}\n")
    (project / "params.yaml").write_text(older)
    assert [line.key for line in add_missing_keys()] == [
        *(f"ingest.columns.{name}" for name in COLUMNS),
        "ingest.minimum",
    ]
    assert (project / "params.yaml").read_text() == before
    edited = older.replace("columns: {}", "columns:\n    item: sku\n    watch: seconds").replace("{}", "\n    watch: 2")
    (project / "params.yaml").write_text(edited)
    add_missing_keys()
    ingest = yaml.safe_load((project / "params.yaml").read_text())["ingest"]
    assert ingest["columns"] == {**dict.fromkeys(COLUMNS, ""), "item": "sku", "watch": "seconds"}
    assert ingest["minimum"] == {"watch": 2}


def test_a_section_whose_keys_were_all_taken_out_is_filled(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(before.partition("track:\n")[0] + "track:\n")
    assert [line.key for line in add_missing_keys()] == [
        f"track.{name}" for name in ("experiment", "log_model", "model_name", "dataset_name", "live", "user_ids")
    ]
    assert (project / "params.yaml").read_text() == before


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sets(st.sampled_from(KEYS), min_size=1, max_size=8))
def test_any_keys_come_back_where_only_their_lines_were_deleted(project: Path, root: Path, keys: set[str]) -> None:
    """Comments stay where they are, and are not there twice. Keys keep the order of the defaults."""
    before = (root / "params.yaml").read_text()
    text = before
    for key in keys:
        text = without(text, key, comment=False)
    (project / "params.yaml").write_text(text)
    assert {line.key for line in add_missing_keys()} == keys
    after = (project / "params.yaml").read_text()
    assert yaml.safe_load(after) == yaml.safe_load(before)
    assert [list(section) for section in yaml.safe_load(after).values() if isinstance(section, dict)] == [
        list(section) for section in yaml.safe_load(before).values() if isinstance(section, dict)
    ]
    assert dvc_writes(after) == after


def test_what_the_user_wrote_stays(project: Path) -> None:
    text = without((project / "params.yaml").read_text(), "train.compile")
    for line, instead in (
        ("  learning_rate: 0.004\n", "  learning_rate: 3e-4  # mine\n"),
        ("seed: 42\n", "# a note\nseed: 7\n"),
        ("  accumulate: 1\n", ""),
        ("  optimizer: adamw\n", "  optimizer: adam\n  accumulate: 1\n"),
    ):
        text = text.replace(line, instead)
    (project / "params.yaml").write_text(text)
    assert [str(line) for line in add_missing_keys()] == ["added train.compile: true"]
    assert without((project / "params.yaml").read_text(), "train.compile") == text


def test_sections_in_braces_and_with_another_indent_are_completed_too(project: Path) -> None:
    text = without(without(without((project / "params.yaml").read_text(), "track"), "evaluate"), "split")
    text += "track: {log_model: false}\nsplit: {}\nevaluate:\n      beam: 30\n"
    (project / "params.yaml").write_text(text)
    add_missing_keys()
    params = load_params()
    assert (params.track.log_model, params.track.experiment) == (False, "sidpipe")
    assert (params.evaluate.beam, params.evaluate.batch_users) == (30, 256)
    assert params.split.max_history == 20
    assert dvc_writes((project / "params.yaml").read_text()) == (project / "params.yaml").read_text()


def test_an_empty_file_becomes_the_defaults(project: Path, root: Path) -> None:
    (project / "params.yaml").write_text("")
    add_missing_keys()
    assert (project / "params.yaml").read_bytes() == (root / "params.yaml").read_bytes()


def test_where_nothing_is_missing_nothing_is_written(project: Path) -> None:
    text = (project / "params.yaml").read_text().replace("seed: 42", "seed:   42")
    (project / "params.yaml").write_text(text)
    assert add_missing_keys() == []
    assert (project / "params.yaml").read_text() == text


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("  learning_rate: ", "unknown key 'train.learning_rat': did you mean 'learning_rate'"),
        ("beam: 20", "evaluate.beam is 2, expected a whole number from 10 to"),
        ("seed: 42", "not valid YAML"),
        ("", "is not here"),
        ("all", "the file must be a mapping"),
    ],
)
def test_what_is_refused_leaves_the_file_alone(wrong: str, said: str, project: Path) -> None:
    path = project / "params.yaml"
    text = without(path.read_text(), "intrr")
    changed = {"beam: 20": "beam: 2", "seed: 42": "seed: [42", "  learning_rate: ": "  learning_rat: "}.get(wrong, "")
    path.write_text("[1, 2]\n" if wrong == "all" else text.replace(wrong, changed))
    if not wrong:
        path.unlink()
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(UserError) as caught:
        add_missing_keys()
    assert said in str(caught.value)
    assert (path.read_bytes() if path.exists() else None) == before


def test_without_the_defaults_nothing_is_changed(project: Path) -> None:
    (project / "presets/demo.yaml").unlink()
    with pytest.raises(UserError, match=r"presets/demo\.yaml is not here"):
        add_missing_keys()


def test_broken_defaults_change_nothing(project: Path) -> None:
    (project / "presets/demo.yaml").write_text("seed: [42\n")
    with pytest.raises(UserError, match=r"presets/demo\.yaml is not valid YAML"):
        add_missing_keys()


def test_a_preset_adds_first_what_is_missing(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(without(without(before, "intrr"), "train.compile"))
    lines = [str(change) for change in apply_preset("demo", ["seed=7"])]
    assert lines[0] == "added train.compile: true"
    assert lines[-1] == "seed: 42 -> 7"
    assert (project / "params.yaml").read_text() == before.replace("seed: 42", "seed: 7")
