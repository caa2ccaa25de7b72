"""Shards of text vectors: what a killed run left is taken up, several processes share the work, none is left behind."""

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, wait_until
from settings import some_params
from tiny_text import ITEMS, config, save_tokenizer, texts
from typed import present

from pipeline.artifacts import Embeddings, Interactions, write_parquet
from pipeline.embed import shards
from pipeline.embed.shards import Shards
from pipeline.embed.stage import run
from pipeline.embed.text import TextEncoder, text_vectors
from pipeline.errors import UserError
from pipeline.locks import is_awaited


class Counted:
    """Counts the texts that an encoder really embeds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts, start = 0, TextEncoder.start

        def counting(encoder: TextEncoder, tokens: list[npt.NDArray[np.int32]]) -> torch.Tensor:
            self.texts += len(tokens)
            return start(encoder, tokens)

        monkeypatch.setattr(TextEncoder, "start", counting)


def test_only_missing_and_damaged_shards_are_made_again(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    whole, _, kept = present(text_vectors(texts(), config(folders["t5"]), tmp_path))
    files = sorted(kept.folder.iterdir())
    assert (len(files), counted.texts) == (8, ITEMS)  # seven shards of five items, one of two
    files[2].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-8])
    kept.close()
    counted.texts = 0
    again, _, _ = present(text_vectors(texts(), config(folders["t5"]), tmp_path))
    assert counted.texts == 10
    assert again.tobytes() == whole.tobytes()


def other_model(folders: dict[str, str], tmp_path: Path) -> str:
    changed = transformers.T5ForConditionalGeneration.from_pretrained(folders["t5"])
    torch.nn.init.normal_(changed.shared.weight)
    changed.save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.mark.parametrize(
    "change", ["template", "max_tokens", "dtype", "shard_items", "weights", "one text", "nothing", "batch_tokens"]
)
def test_shards_are_taken_only_where_all_that_decides_the_vectors_is_equal(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    counted = Counted(monkeypatch)
    text_vectors(texts(), config(folders["t5"]), tmp_path / "scratch")
    assert counted.texts == ITEMS
    changes: dict[str, dict[str, Any]] = {
        "template": {"template": ("Title: {title}",)},
        "max_tokens": {"max_tokens": 4},
        "dtype": {"dtype": "bfloat16"},
        "shard_items": {"shard_items": 6},
        "batch_tokens": {"batch_tokens": 30},
    }
    after = texts()
    if change == "one text":
        after[3] += " word5"
    model = other_model(folders, tmp_path) if change == "weights" else folders["t5"]
    text_vectors(after, config(model, **changes.get(change, {})), tmp_path / "scratch")
    # a user who ran out of memory takes a smaller batch: finished shards stay valid
    assert counted.texts == (ITEMS if change in ("nothing", "batch_tokens") else 2 * ITEMS)


@pytest.fixture
def interactions(tmp_path: Path) -> Path:
    items = pd.DataFrame(
        {"item_id": np.arange(ITEMS, dtype=np.int32), "raw_id": [f"r{i}" for i in range(ITEMS)], "title": texts()}
    )
    write_parquet(Interactions(tmp_path / "interactions").items, items)
    return tmp_path / "interactions"


def test_the_stage_states_the_encoder_and_leaves_no_shards_behind(
    folders: dict[str, str], interactions: Path, tmp_path: Path
) -> None:
    params = some_params(embed=config(folders["bert"]))
    summary = run(params, interactions=interactions, output=tmp_path / "out", scratch=tmp_path / "scratch")
    assert summary["name"] == folders["bert"].rsplit("/", 1)[1]
    assert (summary["pooling"], summary["dtype"], summary["dimensions"]) == ("mean", "float32", 16)
    assert len(summary["revision"]) == 64
    assert Embeddings.read(tmp_path / "out").encoder == summary
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    run(params, interactions=interactions, output=tmp_path / "again", scratch=tmp_path / "scratch")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


HELD_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/support")
from patience import wait_until
from settings import some, some_params
from pipeline.embed import shards
from pipeline.embed.batches import token_budget_batches
from pipeline.embed.config import EmbedConfig
from pipeline.embed.stage import run
from pipeline.embed.text import TextEncoder
start = TextEncoder.start
folder, model, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def when_it_may(self, tokens):
    few = lambda: len(list((folder / "scratch").rglob("*.safetensors"))) < most
    wait_until(lambda: few() or (folder / "go on").exists(), "nobody says go on")
    return start(self, tokens)
TextEncoder.start = when_it_may
config = some(EmbedConfig, encoder="text", model=model, max_tokens=20, batch_tokens=60, shard_items=5)
run(some_params(embed=config), interactions=folder / "interactions", output=folder / "out", scratch=folder / "scratch")
"""


@pytest.mark.slow
def test_after_sigkill_only_the_shards_that_are_missing_are_made(
    folders: dict[str, str], interactions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = subprocess.Popen([sys.executable, "-c", HELD_RUN, str(tmp_path), folders["t5"], "3"])
    scratch = tmp_path / "scratch"
    wait_until(lambda: len(list(scratch.rglob("*.safetensors"))) >= 3, "no three shards", alive=process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(scratch.rglob("*.safetensors")))
    assert 3 <= kept < 8
    assert not (tmp_path / "out").exists()
    counted = Counted(monkeypatch)
    params = some_params(embed=config(folders["t5"]))
    run(params, interactions=interactions, output=tmp_path / "out", scratch=scratch)
    assert counted.texts == ITEMS - 5 * kept
    run(params, interactions=interactions, output=tmp_path / "whole", scratch=tmp_path / "fresh")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["", "embed"], ids=["by hand", "of DVC"])
def test_two_runs_at_once_make_each_vector_once(
    folders: dict[str, str], interactions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """By hand the second is refused; a stage of DVC waits, and takes the shards of the first."""
    first = subprocess.Popen([sys.executable, "-c", HELD_RUN, str(tmp_path), folders["t5"], "1"])
    scratch = tmp_path / "scratch"
    wait_until(lambda: list(scratch.rglob("*.safetensors")), "no shard", alive=first)
    if stage:
        monkeypatch.setenv("DVC_STAGE", stage)
    counted = Counted(monkeypatch)

    def second() -> None:
        params = some_params(embed=config(folders["t5"]))
        run(params, interactions=interactions, output=tmp_path / "second", scratch=scratch)

    def let_first_go_on() -> None:
        if stage:
            wait_until(lambda: any(map(is_awaited, scratch.rglob("*.waits"))), "the second run does not wait")
        (tmp_path / "go on").touch()

    if stage:
        threading.Thread(target=let_first_go_on, daemon=True).start()
        second()
    else:
        with pytest.raises(UserError, match=f"process {first.pid} of .* embeds the same items"):
            second()
        let_first_go_on()
    assert first.wait(PATIENCE) == 0
    assert counted.texts == 0
    assert not list(scratch.rglob("*.safetensors"))
    if stage:
        for path in (tmp_path / "out").iterdir():
            assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


# ---------------------------------------------------------------------------------------------------- several processes


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


def test_processes_make_each_shard_once_and_the_first_one_gathers_all(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    whole, _, _ = present(text_vectors(texts(), config(folders["t5"]), tmp_path / "alone"))
    alone, made = counted.texts, 0
    for rank in (1, 2, 0):  # the first process comes last, because it waits for the others
        as_process(monkeypatch, rank, 3)
        counted.texts = 0
        encoded = text_vectors(texts(), config(folders["t5"]), tmp_path)
        assert 0 < counted.texts < alone / 2
        made += counted.texts
        assert (encoded is None) == (rank > 0)
    assert made == alone
    assert present(encoded)[0].tobytes() == whole.tobytes()


@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 30), st.integers(1, 8))
def test_shards_are_dealt_once_each_and_by_cost(costs: list[int], size: int, processes: int) -> None:
    """The bound is Graham's: no process has more than the mean and the largest shard together."""
    shared = Shards(Path("unused"), "x", len(costs), size, np.array(costs))
    dealt = shared.dealt(processes)
    assert sorted(shard for one in dealt for shard in one) == list(range(len(shared.spans)))
    each = [sum(costs[shared.spans[shard]]) for shard in range(len(shared.spans))]
    loads = [sum(each[shard] for shard in one) for one in dealt]
    assert max(loads) <= sum(costs) / processes + max(each)
    same = Shards(Path("unused"), "x", len(costs), size).dealt(processes)
    assert max(map(len, same)) - min(map(len, same)) <= 1


def test_the_first_process_makes_what_another_one_left_undone(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = present(text_vectors(texts(), config(folders["t5"]), tmp_path / "alone"))
    as_process(monkeypatch, 0, 2)
    monkeypatch.setattr(shards, "PATIENCE", 0.1)
    assert present(text_vectors(texts(), config(folders["t5"]), tmp_path))[0].tobytes() == whole.tobytes()


def test_a_process_that_helps_writes_no_result(
    folders: dict[str, str], interactions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_process(monkeypatch, 1, 2)
    assert (
        run(
            some_params(embed=config(folders["t5"])),
            interactions=interactions,
            output=tmp_path / "out",
            scratch=tmp_path / "scratch",
        )
        == {}
    )
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "scratch").rglob("*.safetensors"))
