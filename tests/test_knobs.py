"""Bounds of knobs: whatever stands behind a key of params.yaml is read or refused, in one short line and at once."""

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from odd_values import ODD_VALUES
from settings import raw_params, read_params

from pipeline.config import Params, build_params, load_params
from pipeline.errors import UserError
from pipeline.knobs import Between, Text, build_section, short
from pipeline.presets.apply import apply_preset
from pipeline.strategies.registry import from_saved
from pipeline.yaml_files import DEEPEST, MOST_BYTES, parse_yaml, read_text

SECTIONS = [name for name, value in raw_params().items() if isinstance(value, dict)]
KNOBS = [
    f"{name}.{key}" if key else name
    for name, value in raw_params().items()
    for key in (value if isinstance(value, dict) else [""])
]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    width: Annotated[int, Between(2, 1000)]
    share: Annotated[float, Between(0, 1, above=True, below=True)]
    name: Annotated[str, Text(1, 5)]
    kind: Annotated[int, Between(0, 9)] | Literal["all"]


def refused(**values: Any) -> str:
    """What is said of these values, which are otherwise good."""
    problems: list[str] = []
    good = {"width": 2, "share": 0.5, "name": "a", "kind": "all"}
    assert build_section(Sizes, {**good, **values}, "", problems, problems) is None
    (line,) = problems
    return line


class TestBounds:
    def test_are_printed_with_the_value(self) -> None:
        assert refused(width=1) == "width is 1, expected a whole number from 2 to 1,000"
        assert refused(share=1) == "share is 1, expected a number above 0 and below 1"
        assert refused(name="") == "name is '', expected a text of one character to 5 characters"
        assert refused(kind=10) == "kind is 10, expected a whole number from 0 to 9 or 'all'"

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "1e400", "1e999999999", 10**400])
    def test_hold_no_number_that_is_not_finite(self, value: Any) -> None:
        assert refused(share=value).startswith("share is ")
        assert refused(width=value).startswith("width is ")

    @pytest.mark.parametrize("value", ["1e2", 1e2, "1E+2", "1.e2", 100])
    def test_a_whole_number_may_have_an_exponent(self, value: Any) -> None:
        problems: list[str] = []
        found = build_section(Sizes, {"width": value, "share": 0.5, "name": "a", "kind": 1}, "", problems, problems)
        assert (found.width, type(found.width)) == (100, int)

    @pytest.mark.parametrize("value", ["1.5e0", 2.5, "100", True, "ten", None, [2], "1e-2"])
    def test_what_is_no_whole_number_is_refused(self, value: Any) -> None:
        assert refused(width=value).startswith("width is ")

    def test_a_value_that_may_have_several_types_keeps_its_own(self) -> None:
        for value in (5.0, 5, True, "5", "1e6", (1, "a")):
            plain = list(value) if isinstance(value, tuple) else value
            found = read_params({"ingest": {"where": {"x": plain}}}).ingest.where["x"]
            assert (found, type(found)) == (value, type(value))

    def test_a_text_has_no_half_characters(self) -> None:
        assert refused(name="\0").startswith("name is '\\x00'")
        assert refused(name="\ud800").startswith("name is '\\ud800'")

    def test_a_value_is_shown_short_however_large(self) -> None:
        deep: Any = [1]
        for _ in range(60):
            deep = [deep] * 9
        for value in (deep, "x" * 10**6, 16**5000, dict.fromkeys(range(1000), deep)):
            assert len(short(value)) < 400


@contextmanager
def at_once(seconds: float) -> Iterator[None]:
    """Fail where the work below takes longer, in seconds of the processor.

    Garbage is collected later: the process of many tests holds so much that a collection can take longer than the work.
    """
    gc.disable()
    began = time.process_time()
    try:
        yield
        took = time.process_time() - began
    finally:
        gc.enable()
    assert took < seconds


def read_or_refused(read: Callable[[], Params]) -> tuple[Params | None, str]:
    """The parameters, or what was said of them; at once, and in one short line of one problem."""
    with at_once(1):
        try:
            found, said = read(), ""
        except UserError as error:
            found, said = None, error.what
    assert all(len(line) < 500 for line in said.splitlines())
    assert said.count("\n") < 40
    return found, said


def with_value(section: str, key: str, value: Any) -> Params:
    raw = raw_params()
    raw[section] = {**raw[section], key: value} if key else value
    return build_params(raw)


class TestEveryKnob:
    """Each key of params.yaml, with each value, as a user would write it."""

    @pytest.mark.parametrize("knob", KNOBS[::50])
    def test_takes_or_refuses_any_value(self, knob: str) -> None:
        self.every_value(knob)

    @pytest.mark.long
    @pytest.mark.parametrize("knob", [*KNOBS, *SECTIONS])
    def test_takes_or_refuses_any_value_all_of_them(self, knob: str) -> None:
        self.every_value(knob)

    def every_value(self, knob: str) -> None:
        section, _, key = knob.partition(".")
        for value in ODD_VALUES:
            text = f"{knob.rpartition('.')[2]}: {value}"
            read = partial(parse_yaml, text, "params.yaml")
            found, said = read_or_refused(lambda: with_value(section, key, next(iter(read().values()))))  # noqa: B023
            if found is None:
                assert knob in said or "not valid YAML" in said, text[:100]
            else:
                again = build_params(yaml.safe_load(json.dumps(found.plain(), allow_nan=False)))
                assert again == found, text[:100]

    @pytest.mark.parametrize("knob", KNOBS)
    def test_says_no_to_what_is_not_finite(self, knob: str) -> None:
        section, _, key = knob.partition(".")
        found, said = read_or_refused(lambda: with_value(section, key, float("nan")))
        assert found is None
        assert said.startswith((f"{knob} is nan, ", f"{knob} must be a "))


class TestFile:
    def test_a_folder_another_encoding_and_a_large_file_are_named(self, tmp_path: Path) -> None:
        path = tmp_path / "params.yaml"
        path.mkdir()
        self.says(path, "is a folder")
        path.rmdir()
        path.write_bytes("seed: 1\nstrategy: \xe9".encode("latin-1"))
        self.says(path, "is not UTF-8: line 2 has the byte 0xe9")
        path.write_bytes("seed: 1".encode("utf-16"))
        self.says(path, "is not UTF-8: line 1")
        path.write_bytes(b"# " + b"x" * MOST_BYTES)
        self.says(path, "has more than 128 KiB")

    def test_brackets_are_refused_before_the_text_is_read_ahead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begin = yaml.SafeLoader.fetch_flow_sequence_start
        begun = []

        def counted(loader: yaml.SafeLoader) -> None:
            begun.append(1)
            begin(loader)

        monkeypatch.setattr(yaml.SafeLoader, "fetch_flow_sequence_start", counted)
        with pytest.raises(UserError, match=f"more than {DEEPEST} levels"):
            parse_yaml("[" * 5000, "params.yaml")
        assert len(begun) == DEEPEST + 1

    def test_a_tree_without_bounds_is_named_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "params.yaml"
        for text in ("[" * 100_000, "- 1\n" * 30_000, "a: &a [*a]", "seed: 1\nseed: 2"):
            path.write_text(text)
            with at_once(2):
                self.says(path, "is not valid YAML")

    @staticmethod
    def says(path: Path, words: str) -> None:
        with pytest.raises(UserError, match=words) as caught:
            load_params(path)
        assert "\n" not in caught.value.what

    def test_another_reader_gives_its_own_reason(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="the reason"):
            read_text(tmp_path / "none.yaml", "the reason")


@pytest.mark.parametrize("value", ["1e400", "[" * 5000, ODD_VALUES[-5]])
def test_a_setting_on_the_command_line_is_read_or_refused(value: str, tmp_path: Path, root: Path) -> None:
    set_on_the_command_line(value, tmp_path, root)


@pytest.mark.long
@pytest.mark.parametrize("value", ODD_VALUES)
def test_any_setting_on_the_command_line_is_read_or_refused(value: str, tmp_path: Path, root: Path) -> None:
    set_on_the_command_line(value, tmp_path, root)


def set_on_the_command_line(value: str, folder: Path, root: Path) -> None:
    path = folder / "params.yaml"
    before = (root / "params.yaml").read_bytes()
    for key in ("train.clip_norm", "split.valid_from"):
        path.write_bytes(before)
        try:
            apply_preset("skipgr", [f"{key}={value}"], folder=root / "presets", params=path)
            said = ""
        except UserError as error:
            said = error.what
            assert path.read_bytes() == before
        assert not said or key in said or "not valid YAML" in said
        load_params(path)


@pytest.mark.parametrize("value", [float("nan"), 10**6, -1, "x", None, [1], {}])
def test_a_section_of_a_saved_model_keeps_to_the_bounds(value: Any) -> None:
    backbone = read_params().plain()["backbone"]
    kind = type(read_params().backbone)
    assert from_saved(kind, backbone, "backbone") == read_params().backbone
    with pytest.raises(ValueError, match=r"^backbone\.encoder_layers is .*, expected a whole number from 1 to 128$"):
        from_saved(kind, {**backbone, "encoder_layers": value}, "backbone")
    with pytest.raises(ValueError, match="backbone must be a mapping"):
        from_saved(kind, value if not isinstance(value, dict) else [], "backbone")
