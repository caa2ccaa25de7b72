"""What data say is shown as text: no character of an id or a title steers the terminal or begins a line."""

import ast
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from settings import raw_params

from pipeline import cli
from pipeline.errors import UserError, nearest
from pipeline.printing import escape, say, shown

# Sets the terminal's title; begins a line of its own; C1; deletes; reverses; U+2028; a tab; half a character.
HOSTILE = "\x1b]0;owned\x07\nerror: all is lost\r\x9b31m\x7f\u202e\u2028\t\x85"
SMALL: dict[str, Any] = {
    "dataset": "custom",
    "strategy": "rastp",
    "ingest": {"path": "log", "k_core": 0, "max_reject_rate": 0.1},
    "quantize": {"codes": 4, "levels": 2, "max_collision_rate": 1.0},
    "backbone": {"d_model": 8, "heads": 1, "d_head": 8, "d_ff": 8},
    "train": {"max_windows": 64, "batch_tokens": 512, "validate_every": 2, "threads": 1},
    "rastp": {"after_layer": 1},
    "evaluate": {"bootstrap_samples": 10},
}
ID = "".join(character for character in HOSTILE if character not in "\n\r,")  # ingest refuses ids with line breaks
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069]")


def test_steering_characters_are_escapes_and_other_text_is_as_it_was() -> None:
    assert shown("Crème \u200d👩\u200d🔬 עברית 中文") == "Crème \u200d👩\u200d🔬 עברית 中文"
    assert shown(HOSTILE) == (
        "\\u001b]0;owned\\u0007\\nerror: all is lost\\u000d\\u009b31m\\u007f\\u202e\\u2028\\t\\u0085"
    )
    assert shown("\ud800") == "\\ud800"


def test_json_with_escapes_is_json_of_the_same_text() -> None:
    text = json.dumps({"title": HOSTILE})
    assert not RAW.search(escape(text))
    assert json.loads(escape(text)) == {"title": HOSTILE}


def test_a_stream_that_lacks_a_character_gets_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("é", "\udcff")
    assert stream.buffer.getvalue() == b"\\xe9\n\\udcff\n"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("http://me:S3CRET@host/x", "http://***@host/x"),
        ("postgresql+psycopg2://me:S3@CRET@host:5432/x a@b", "postgresql+psycopg2://***@host:5432/x a@b"),
        ("https://S3CRET@host", "https://***@host"),
        ("http://host/a@b and b://c@d", "http://host/a@b and b://***@d"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_no_user_or_password_of_a_url_is_printed(text: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    say(text, error=True)
    assert capsys.readouterr() == (printed + "\n", printed + "\n")
    assert str(UserError(text, text, text)) == "\n".join([printed] * 3)


def test_only_one_function_prints(root: Path) -> None:
    """Any other way to a terminal would go past the escapes."""
    for path in sorted((root / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            prints = isinstance(node, ast.Name) and node.id == "print"
            writes = isinstance(node, ast.Attribute) and ast.unparse(node) in (
                *("sys.stdout.write", "sys.stderr.write", "typer.echo", "typer.secho", "click.echo", "warnings.warn"),
            )
            assert path.name == "printing.py" or not (prints or writes), f"{path}: {ast.unparse(node)}"


def test_an_error_has_only_the_lines_that_the_code_gave_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli._explain(UserError(f"no column is {shown(HOSTILE)}\x0c", nearest(HOSTILE, [HOSTILE, "b"]), "mend it")) == 1
    )
    lines = capsys.readouterr().err.split("\n")
    assert [line[:7] for line in lines] == ["error: ", "  did y", "  mend ", ""]
    assert not RAW.search("".join(lines))


# ---------------------------------------------------------------------------------------------------- every command

Command = Callable[..., list[str]]


def write_hostile_log(folder: Path) -> None:
    """Sixteen users of eight items, whose ids, titles, columns and file names are hostile; three rows are bad."""
    folder.mkdir()
    rows: list[dict[str, object]] = [
        {"user": f"u{user}{ID}", "item": f"i{(user + step) % 8}{ID}", "time": 1_600_000_000 + step}
        for user in range(16)
        for step in range(8)
    ]
    rows += [{"user": f"bad{HOSTILE}", "item": f"i1{ID}", "time": time} for time in ("x", HOSTILE, "")]
    rows = [{**row, f"stars{HOSTILE}": 5} for row in rows]
    (folder / "interactions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [{"item": f"i{item}{ID}", "title": f"Title {item} {HOSTILE}", "x" + HOSTILE: ""} for item in range(8)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (folder / f"other{HOSTILE[:20]}.csv").write_text("a\n")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in a folder with a hostile log and returns what it prints, line by line."""
    write_hostile_log(tmp_path / "log")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(raw_params(SMALL)))

    def run(*arguments: str, code: int = 0, **ingest: object) -> list[str]:
        if ingest:
            Path("params.yaml").write_text(
                yaml.safe_dump(raw_params({**SMALL, "ingest": {**SMALL["ingest"], **ingest}}))
            )
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        ended: str | int | None = 0
        try:
            cli.main()
        except SystemExit as end:
            ended = end.code or 0
        out, err = capfd.readouterr()
        assert ended == code, out + err
        assert not RAW.search(out + err)
        lines = [line for line in (out + err).split("\n") if not line.startswith("ingest: ")]
        assert not [line for line in lines if line.lstrip().startswith("error: all is lost")]
        return lines

    return run


@pytest.mark.usefixtures("torch_settings_given_back")
def test_no_command_sends_what_an_id_or_title_holds(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = command("ingest", code=1, max_reject_rate=0.0)
    assert f"line 129: {shown('bad' + HOSTILE)}" in "\n".join(refused)
    refused = command("ingest", code=1, columns={"user": "sser"})
    assert f"columns found: user, item, time, {shown('stars' + HOSTILE)}" in "\n".join(refused)
    command("ingest", columns={})
    for stage in ("embed", "split", "count", "quantize", "train", "evaluate"):
        command(stage)
    log = pd.read_parquet("data/interactions/items.parquet")
    one = log.raw_id[0]
    lines = command("recommend", "--user", f"u1{ID}", "-k", "8")
    assert len(lines) == 8 + 1
    assert shown(f"Title 3 {HOSTILE}") in "\n".join(lines)
    assert json.loads("\n".join(command("recommend", "--history", one, "--json")))[0]["item"] in list(log.raw_id)
    assert shown(one) in command("sids", "--item", one)[0]
    assert len(command("explain", "--history", one)) == 1 + 1 + 1
    assert "did you mean" in "\n".join(command("recommend", "--user", f"u99{ID}", code=1))
    command("sids", "--item", f"i99{ID}", code=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:S3CRET@127.0.0.1:9")
    assert "http://***@127.0.0.1:9" in "\n".join(command("doctor", code=1))
    assert "S3CRET" not in "\n".join(command("doctor", "--json", code=1))
