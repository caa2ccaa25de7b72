"""Qwen2.5-VL as an item encoder, on a tiny random model that the tests save themselves."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from qwen_items import ITEMS, SIZES, config, embed, pictures_of, prompt_and_pixels
from settings import some_params
from tiny_qwen import save_qwen

from pipeline.artifacts import Embeddings, Interactions, write_parquet
from pipeline.embed.batches import packed_batches
from pipeline.embed.images import Picture
from pipeline.embed.packed_qwen import qwen_attention
from pipeline.embed.qwen import Prompt, QwenEncoder
from pipeline.embed.stage import run
from pipeline.errors import UserError

CPU = torch.device("cpu")


# ---------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_a_vector_is_the_same_alone_and_in_a_batch_of_other_items(
    model: str, encoder: QwenEncoder, folder: Path, pooling: str
) -> None:
    together = embed(model, folder, pooling=pooling).vectors_Id
    for (text, cell), vector in zip(ITEMS, together, strict=True):
        if text or cell:
            prompt, pixels = prompt_and_pixels(encoder, text, pictures_of(folder, cell))
            assert encoder.embed([prompt], pixels, pooling)[0] == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_a_vector_is_what_transformers_own_model_gives(
    model: str, encoder: QwenEncoder, folder: Path, pooling: str
) -> None:
    whole = transformers.AutoModel.from_pretrained(model).eval()
    for text, cell in ITEMS:
        prompt, pixels = prompt_and_pixels(encoder, text, pictures_of(folder, cell))
        ids = torch.from_numpy(prompt.ids).long()[None]
        images = (
            {
                "pixel_values": torch.cat(pixels),
                "mm_token_type_ids": (ids == encoder.image_token).int(),
                "image_grid_thw": torch.tensor([[1, *grid] for grid in prompt.grids]),
            }
            if pixels
            else {}
        )
        whole.rope_deltas = None
        with torch.no_grad():
            states = whole(input_ids=ids, **images).last_hidden_state[0].numpy()
        expected = states[-1] if pooling == "last_token" else states.mean(axis=0)
        assert encoder.embed([prompt], pixels, pooling)[0] == pytest.approx(expected, abs=1e-5)


def test_text_and_every_image_count(model: str, folder: Path) -> None:
    items = [
        ("red", None),
        ("blue", None),
        ("red", "a.png"),
        ("red", "b.png"),
        ("red", "a.png; b.png"),
        ("red", "b.png; a.png"),
    ]
    vectors = embed(model, folder, items).vectors_Id
    for i in range(len(items)):
        for j in range(i):
            assert np.abs(vectors[i] - vectors[j]).max() > 0.01


def test_positions_are_those_of_transformers(model: str, encoder: QwenEncoder, folder: Path) -> None:
    whole = transformers.AutoModel.from_pretrained(model)
    for text, cell in ITEMS:
        prompt, _ = prompt_and_pixels(encoder, text, pictures_of(folder, cell))
        ids = torch.from_numpy(prompt.ids).long()[None]
        expected, _ = whole.get_rope_index(
            ids, (ids == encoder.image_token).int(), torch.tensor([[1, *grid] for grid in prompt.grids])
        )
        assert encoder.positions(prompt).tolist() == expected[:, 0].tolist()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [1, 2])
def test_packed_attention_equals_a_slow_reference(causal: bool, shared: int) -> None:
    lengths, generator = [3, 1, 7, 5], torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(16, heads, 8, generator=generator) for heads in (4, 4 // shared, 4 // shared))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    mixed = qwen_attention(q, k, v, starts, 7, 0.3, causal)
    for start, length in zip(starts.tolist(), lengths, strict=False):
        for head in range(4):
            for t in range(length):
                seen = slice(start, start + (t + 1 if causal else length))
                weights = (k[seen, head // shared] @ q[start + t, head] * 0.3).softmax(0)
                assert torch.allclose(mixed[start + t, head], weights @ v[seen, head // shared], atol=1e-5)


def test_the_head_is_not_loaded(encoder: QwenEncoder) -> None:
    assert not [name for name, _ in encoder.model.named_parameters() if "lm_head" in name]


def test_batches_keep_to_the_budget_cover_all_and_let_a_long_item_stand_alone() -> None:
    lengths = [70, *np.random.default_rng(0).integers(1, 30, 50).tolist()]
    batches = list(packed_batches(lengths, 60))
    assert [i for batch in batches for i in range(51)[batch]] == list(range(51))
    assert batches[0] == slice(0, 1)
    assert all(sum(lengths[batch]) <= 60 for batch in batches[1:])
    assert all(sum(lengths[batch]) + lengths[batch.stop] > 60 for batch in batches[:-1])  # none is cut short


# ---------------------------------------------------------------------------------------------------- shards


class Counted:
    """Counts the items that an encoder really embeds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items, start = 0, QwenEncoder.start

        def counting(
            encoder: QwenEncoder, prompts: list[Prompt], pixels: list[torch.Tensor], pooling: str
        ) -> torch.Tensor:
            self.items += len(prompts)
            return start(encoder, prompts, pixels, pooling)

        monkeypatch.setattr(QwenEncoder, "start", counting)


@pytest.mark.parametrize(
    "change",
    [
        "nothing",
        "batch_tokens",
        "prompt",
        "pooling",
        "image_tokens",
        "one image",
        "one text",
        "weights",
        "dtype",
        "a shard is gone",
    ],
)
def test_shards_are_taken_only_where_all_that_decides_the_vectors_is_equal(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    counted, made = Counted(monkeypatch), embed(model, folder)
    assert counted.items == 6
    of_change: dict[str, dict[str, Any]] = {
        "batch_tokens": {"batch_tokens": 90},
        "prompt": {"prompt": "Say {item}"},
        "pooling": {"pooling": "mean"},
        "image_tokens": {"image_tokens": 12},
        "dtype": {"dtype": "bfloat16"},
    }
    items = [*ITEMS[:5], ("garden hose, 30 m", "d.png"), ITEMS[6]] if change == "one text" else ITEMS
    if change == "one image":
        Image.new("RGB", SIZES["b"]).save(folder / "b.png")
    if change == "a shard is gone":
        sorted(made.shards.folder.iterdir())[0].unlink()
    made.shards.close()
    other = save_qwen(tmp_path / "other", seed=1) if change == "weights" else model
    embed(other, folder, items, **of_change.get(change, {}))
    assert counted.items == {"nothing": 6, "batch_tokens": 6, "a shard is gone": 9}.get(change, 12)


def test_the_stage_writes_vectors_rejects_and_facts_and_leaves_no_shards_behind(
    model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.DataFrame(
        {
            "item_id": np.arange(7, dtype=np.int32),
            "raw_id": [f"r{i}" for i in range(7)],
            "title": [text or None for text, _ in ITEMS],
            "image": [image for _, image in ITEMS],
        }
    )
    write_parquet(Interactions(tmp_path / "interactions").items, frame)
    params = some_params(embed=config(model, folder, template=("{title}",)))

    def embed_into(name: str) -> dict[str, Any]:
        return run(params, interactions=tmp_path / "interactions", output=tmp_path / name, scratch=tmp_path / "scratch")

    summary = embed_into("first")
    assert Embeddings.read(tmp_path / "first").encoder == summary
    assert (summary["encoder"], summary["pooling"], summary["dimensions"]) == ("multimodal", "last_token", 32)
    assert (summary["items_without_text"], summary["items_without_image"], summary["zero_vectors"]) == (3, 2, 1)
    assert "8 of 8 images were used; 0 were refused" in capsys.readouterr().out
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    embed_into("second")
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


# ---------------------------------------------------------------------------------------------------- what can be wrong


def test_a_model_that_is_not_there_says_how_to_put_it_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the Qwen2\.5-VL 'nobody/no-such-model' could not be loaded") as caught:
        QwenEncoder.load("nobody/no-such-model", "main", "float32", CPU, 16)
    assert "hf download nobody/no-such-model --local-dir" in caught.value.fix


def test_a_model_of_another_kind_is_named(tmp_path: Path) -> None:
    transformers.T5Config(d_model=16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it is a t5, not a qwen2_5_vl"):
        QwenEncoder.load(str(tmp_path), "main", "float32", CPU, 16)


def test_a_tokenizer_without_the_image_token_is_refused(model: str, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "broken")
    path = tmp_path / "broken/config.json"
    path.write_text(path.read_text().replace('"image_token_id": 261', '"image_token_id": 5'))
    with pytest.raises(UserError, match="its tokenizer has no"):
        QwenEncoder.load(str(tmp_path / "broken"), "main", "float32", CPU, 16)


@pytest.mark.parametrize("becomes", ["another", "gone"])
def test_an_image_that_changes_after_its_check_stops_the_run(
    model: str, folder: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    load = Picture.load

    def change_first(picture: Picture) -> Image.Image:
        picture.path.unlink(missing_ok=True)
        if becomes == "another":
            Image.new("RGB", (90, 60)).save(picture.path)
        return load(picture)

    monkeypatch.setattr(Picture, "load", change_first)
    with pytest.raises(UserError, match="changed while items were embedded"):
        embed(model, folder)


def test_where_there_is_nothing_to_embed_at_all_the_template_is_named(model: str, folder: Path) -> None:
    with pytest.raises(UserError, match="no item has a text or an image"):
        embed(model, folder, [("", None), ("", None)])
