"""Files that belong together: a mix, a flipped bit, a cut file and JSON of another shape are refused by name."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts import Embeddings, Sids, fingerprint, read_json, write_bytes
from pipeline.errors import UserError
from pipeline.manifest import MANIFEST, file_digest


def semantic_ids(codes: int = 4) -> Sids:
    codes_IL = np.arange(12, dtype=np.int32).reshape(6, 2) % codes
    return Sids(codes_IL, (codes, codes), {"level_1": np.ones((codes, 3), np.float32)}, {"items": 6})


def said_of(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in caught.value.what
    return str(caught.value)


@pytest.mark.parametrize("name", ["sids.parquet", "codebooks.safetensors", "quality.json"])
def test_a_flipped_bit_and_a_cut_file_are_named_with_the_command(name: str, tmp_path: Path) -> None:
    semantic_ids().write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for damaged in (bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], b"", bytes(len(whole))):
        write_bytes(tmp_path / name, damaged)
        said = said_of(lambda: Sids.read(tmp_path))
        assert said.startswith(f"{tmp_path / name} is not the file that {tmp_path / MANIFEST} lists")
        assert "`python -m pipeline quantize`" in said
    write_bytes(tmp_path / name, whole)
    assert Sids.read(tmp_path).widths == (4, 4)


def test_a_stage_that_was_stopped_between_two_files_leaves_a_folder_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    semantic_ids().write(tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.artifacts.write_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            semantic_ids(3).write(tmp_path)
    assert "sids.parquet is not the file" in said_of(lambda: Sids.read(tmp_path))
    semantic_ids(3).write(tmp_path)
    assert Sids.read(tmp_path).widths == (3, 3)


def test_a_folder_without_a_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    semantic_ids().write(tmp_path)
    before = fingerprint(tmp_path)
    (tmp_path / MANIFEST).unlink()
    assert fingerprint(tmp_path) == before, "a manifest is no content, so models of earlier versions fit their splits"
    assert Sids.read(tmp_path).digit


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"stage": "quantize", "files": []}', "[" * 100_000, '{"stage": 1}'])
def test_a_damaged_manifest_is_named(text: str, tmp_path: Path) -> None:
    semantic_ids().write(tmp_path)
    (tmp_path / MANIFEST).write_text(text)
    assert said_of(lambda: Sids.read(tmp_path)).startswith(f"{tmp_path / MANIFEST} is no list of files")


@pytest.mark.parametrize("text", ["{}", "[]", "3", "null", '{"widths": 3}', '{"widths": [4]}', "[" * 100_000, '"x'])
def test_json_of_another_shape_is_named_without_a_manifest_too(text: str, tmp_path: Path) -> None:
    semantic_ids().write(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "quality.json").write_text(text)
    assert " cannot be read: " in said_of(lambda: Sids.read(tmp_path))


def test_tensors_of_other_names_are_named(tmp_path: Path) -> None:
    Embeddings(np.ones((2, 2), np.float32), {}).write(tmp_path)
    (tmp_path / MANIFEST).unlink()
    semantic_ids().write(tmp_path / "sids")
    (tmp_path / "embeddings.safetensors").write_bytes((tmp_path / "sids/codebooks.safetensors").read_bytes())
    assert "it holds no tensor 'vectors'" in said_of(lambda: Embeddings.read(tmp_path))


def test_the_same_content_gives_the_same_manifest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        semantic_ids().write(tmp_path / name)
    assert (tmp_path / "a" / MANIFEST).read_bytes() == (tmp_path / "b" / MANIFEST).read_bytes()
    replace(semantic_ids(), digit=False).write(tmp_path / "b")
    assert (tmp_path / "a" / MANIFEST).read_bytes() != (tmp_path / "b" / MANIFEST).read_bytes()
    listed = json.loads((tmp_path / "b" / MANIFEST).read_text())
    assert listed["stage"] == "quantize"
    assert sorted(listed["files"]) == ["codebooks.safetensors", "quality.json", "sids.parquet"]


def test_what_a_killed_process_left_half_written_goes_and_what_another_writes_stays(tmp_path: Path) -> None:
    other = tmp_path / f"a.json.{os.getppid()}.partial"
    for left in (tmp_path / "a.json.4194304.partial", tmp_path / "a.json.x.partial", other):
        left.write_bytes(b"half")
    write_bytes(tmp_path / "a.json", b"{}\n")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a.json", other])
    assert read_json(tmp_path / "a.json") == {}


def test_an_interrupt_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a.json", b"{}\n")
    assert not list(tmp_path.iterdir())


def test_a_file_is_read_once_in_a_process_and_again_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"1")
    before = file_digest(path)
    assert file_digest(path) == before
    write_bytes(path, b"2")
    assert file_digest(path) != before
