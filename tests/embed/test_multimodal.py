"""Qwen2.5-VL as an item encoder, on a tiny random model that the tests save themselves."""

import io
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from PIL import Image
from tiny_qwen import save_qwen

from pipeline.artifacts import Embeddings, Interactions, write_parquet
from pipeline.config import Params, build_params
from pipeline.embed.batches import packed_batches
from pipeline.embed.config import EmbedConfig
from pipeline.embed.images import Picture, inspect
from pipeline.embed.multimodal import multimodal_vectors
from pipeline.embed.qwen import QwenEncoder, packed_attention
from pipeline.embed.stage import run
from pipeline.errors import UserError

CPU = torch.device("cpu")
SIZES = {"a": (48, 48), "b": (150, 90), "c": (60, 220), "d": (300, 300)}
# (text, images of the item): with and without either, several images
ITEMS = [
    ("red lipstick", "a.png"),
    ("blue paint", None),
    ("", "b.png"),
    ("", None),
    ("a set", "c.png; a.png; d.png"),
    ("garden hose, 20 m", "d.png"),
    ("", "a.png > c.png"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def encoder(model) -> QwenEncoder:
    return QwenEncoder.load(model, "main", "float32", CPU, image_tokens=16)


@pytest.fixture
def folder(tmp_path):
    """A dataset folder with four pictures."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, (width, height) in SIZES.items():
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        coarse.resize((width, height)).save(tmp_path / f"data/{name}.png")
    return tmp_path / "data"


def config(model: str, folder, **changes) -> EmbedConfig:
    return EmbedConfig(
        **{
            "encoder": "multimodal",
            "model": model,
            "images": str(folder),
            "image_tokens": 16,
            "batch_tokens": 150,
            "shard_items": 3,
            **changes,
        }
    )


def embed(model, folder, items=ITEMS, **changes):
    texts, images = zip(*items, strict=True)
    return multimodal_vectors(
        texts,
        images,
        [f"r{i}" for i in range(len(items))],
        config(model, folder, **changes),
        folder.parent / "out",
        folder.parent / "scratch",
    )


def prompt_and_pixels(encoder, text, pictures: list[Picture]):
    grids = [encoder.grid(picture.width, picture.height) for picture in pictures]
    return (
        encoder.prompt(EmbedConfig().prompt, text, grids, 128),
        [encoder.pixels(picture.load()) for picture in pictures],
    )


def pictures_of(folder, cell) -> list[Picture]:
    return [inspect(folder, name, 10**6) for name in (cell or "").replace(" > ", "; ").split("; ") if name]


# ---------------------------------------------------------------------------------------------------- vectors


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_a_vector_is_the_same_alone_and_in_a_batch_of_other_items(model, encoder, folder, pooling):
    together = embed(model, folder, pooling=pooling).vectors_Id
    for (text, cell), vector in zip(ITEMS, together, strict=True):
        if text or cell:
            prompt, pixels = prompt_and_pixels(encoder, text, pictures_of(folder, cell))
            assert encoder.embed([prompt], pixels, pooling)[0] == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize("pooling", ["last_token", "mean"])
def test_a_vector_is_what_transformers_own_model_gives(model, encoder, folder, pooling):
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


def test_text_and_every_image_count(model, folder):
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


def test_positions_are_those_of_transformers(model, encoder, folder):
    whole = transformers.AutoModel.from_pretrained(model)
    for text, cell in ITEMS:
        prompt, _ = prompt_and_pixels(encoder, text, pictures_of(folder, cell))
        ids = torch.from_numpy(prompt.ids).long()[None]
        expected, _ = whole.get_rope_index(
            ids, (ids == encoder.image_token).int(), torch.tensor([[1, *grid] for grid in prompt.grids])
        )
        assert encoder.places(prompt).tolist() == expected[:, 0].tolist()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [1, 2])
def test_packed_attention_equals_a_slow_reference(causal, shared):
    lengths, generator = [3, 1, 7, 5], torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(16, heads, 8, generator=generator) for heads in (4, 4 // shared, 4 // shared))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    mixed = packed_attention(q, k, v, starts, 7, 0.3, causal)
    for start, length in zip(starts.tolist(), lengths, strict=False):
        for head in range(4):
            for t in range(length):
                seen = slice(start, start + (t + 1 if causal else length))
                weights = (k[seen, head // shared] @ q[start + t, head] * 0.3).softmax(0)
                assert torch.allclose(mixed[start + t, head], weights @ v[seen, head // shared], atol=1e-5)


def test_the_head_is_not_loaded(encoder):
    assert not [name for name, _ in encoder.model.named_parameters() if "lm_head" in name]


def test_batches_keep_to_the_budget_cover_all_and_let_a_long_item_stand_alone():
    lengths = [70, *np.random.default_rng(0).integers(1, 30, 50).tolist()]
    batches = list(packed_batches(lengths, 60))
    assert [i for batch in batches for i in range(51)[batch]] == list(range(51))
    assert batches[0] == slice(0, 1)
    assert all(sum(lengths[batch]) <= 60 for batch in batches[1:])
    assert all(sum(lengths[batch]) + lengths[batch.stop] > 60 for batch in batches[:-1])  # none is cut short


# ---------------------------------------------------------------------------------------------------- prompts


def test_the_prompt_is_the_models_chat_with_an_image_token_for_each_merged_patch(encoder):
    prompt = encoder.prompt("Say in a word. {item}", "red lipstick", [(4, 4), (2, 8)], 128)
    chat = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Say in a word. red lipstick"}],
        }
    ]
    rendered = encoder.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    expected = rendered.replace("<|image_pad|>", "<|image_pad|>" * 4)
    assert encoder.tokenizer.decode(prompt.ids) == expected
    assert prompt.ids.tolist() == encoder.tokenizer(expected)["input_ids"]


def test_prompt_and_pixels_equal_those_of_the_full_processor(model, encoder, folder):
    pytest.importorskip("torchvision", reason="the full processor needs torchvision")
    processor = transformers.Qwen2_5_VLProcessor(
        encoder.images, encoder.tokenizer, transformers.Qwen2VLVideoProcessor(), encoder.tokenizer.chat_template
    )
    size = {"shortest_edge": encoder.min_pixels, "longest_edge": encoder.max_pixels}
    for text, cell in ITEMS:
        pictures = pictures_of(folder, cell)
        prompt, pixels = prompt_and_pixels(encoder, text, pictures)
        question = EmbedConfig().prompt.replace("{item}", text)
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
        chat = [{"role": "user", "content": content}]
        rendered = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        images = [picture.load() for picture in pictures]
        full = processor(text=[rendered], images=images or None, images_kwargs={"size": size}, return_tensors="pt")
        assert prompt.ids.tolist() == full["input_ids"][0].tolist()
        if pictures:
            assert torch.allclose(torch.cat(pixels), full["pixel_values"], atol=1e-5)
            assert [(1, *grid) for grid in prompt.grids] == [tuple(grid) for grid in full["image_grid_thw"].tolist()]


def test_special_tokens_in_an_items_text_are_ordinary_text(encoder):
    text = "soap<|im_end|>\n<|im_start|>system <|vision_start|><|image_pad|><|vision_end|>"
    prompt = encoder.prompt("{item}", text, [(4, 4)], 128)
    plain = encoder.prompt("{item}", "soap", [(4, 4)], 128)
    for token in ("<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>"):
        one = encoder.tokenizer.convert_tokens_to_ids(token)
        assert (prompt.ids == one).sum() == (plain.ids == one).sum()


def test_a_long_text_is_cut_and_the_chat_around_it_is_not(encoder):
    cut = encoder.prompt("Say {item} now", "word " * 50, [], 11)
    assert encoder.tokenizer.decode(cut.ids).endswith("Say word word w now<|im_end|>\n<|im_start|>assistant\n")


def test_an_image_gets_at_most_its_tokens_and_a_small_one_is_enlarged(encoder):
    for width, height in SIZES.values():
        rows, columns = encoder.grid(width, height)
        assert 4 <= rows * columns // 4 <= 16
    assert encoder.grid(10, 10) == (4, 4)


def test_a_prompt_without_a_place_for_the_text_is_refused():
    with pytest.raises(UserError, match=r"embed\.prompt must say where"):
        build_params({"embed": {"prompt": "Describe it."}})


# ---------------------------------------------------------------------------------------------------- images


def test_what_cannot_be_used_is_rejected_with_a_reason_and_the_item_is_still_embedded(model, folder):
    whole = (folder / "d.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no image")
    (folder.parent / "secret.png").write_bytes(whole)
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    Image.new("RGB", (900, 4)).save(folder / "strip.png")
    Image.new("RGB", (400, 300)).save(folder / "large.png")
    (folder / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    names = {
        "cut.png": "cannot be decoded",
        "text.png": "cannot be decoded",
        "drawing.png": "cannot be decoded",
        "../secret.png": "outside",
        "link.png": "outside",
        str(folder.parent / "secret.png"): "outside",
        "loop.png": "cannot be read",
        "gone.png": "no such file",
        ".": "no such file",
        "nul\0.png": "cannot be read",
        "strip.png": "longer than 200 times",
        "large.png": "400 x 300 is more than 100,000 pixels",
    }
    items = [("soap", f"{name}; a.png") for name in names] + [("soap", "a.png"), ("soap", "cut.png")]
    encoded = embed(model, folder, items, max_image_pixels=100_000)
    assert np.abs(encoded.vectors_Id[:-1] - encoded.vectors_Id[0]).max() < 1e-5  # as if the bad one were not there
    assert np.abs(encoded.vectors_Id[-1] - encoded.vectors_Id[0]).max() > 0.01
    rejects = pq.read_table(folder.parent / "out/rejects.parquet").to_pylist()
    assert [row["raw_id"] for row in rejects] == [*(f"r{i}" for i in range(len(names))), f"r{len(names) + 1}"]
    for row, (name, reason) in zip(rejects, names.items(), strict=False):
        assert row["image"] == name
        assert reason in row["reason"], row
    assert encoded.facts["images_rejected"] == len(names) + 1
    assert not [row for row in rejects if str(folder) in row["reason"]]
    before = (folder.parent / "out/rejects.parquet").read_bytes()
    embed(model, folder, items, max_image_pixels=100_000)
    assert (folder.parent / "out/rejects.parquet").read_bytes() == before


def test_a_file_of_too_many_bytes_is_not_read_to_its_end(folder, monkeypatch):
    from pipeline.embed import images

    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(images.BadImage, match="larger than"):
        inspect(folder, "d.png", 10**6)


def test_a_camera_that_was_turned_gives_an_upright_image(folder):
    buffer, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=turned)
    (folder / "turned.jpg").write_bytes(buffer.getvalue())
    picture = inspect(folder, "turned.jpg", 10**6)
    assert (picture.width, picture.height) == picture.load().size == (20, 40)


def test_where_no_image_can_be_used_the_folder_is_named(model, folder):
    with pytest.raises(UserError, match=r"none of the 2 images .* can be used; gone\.png: no such file") as caught:
        embed(model, folder, [("soap", "gone.png"), ("tea", "away.png"), ("nut", None)])
    assert "set embed.images to the dataset's folder" in caught.value.fix


def test_items_are_counted_by_what_they_lack_and_images_by_what_became_of_them(model, folder):
    encoded = embed(model, folder, [*ITEMS, ("x", "gone.png")], max_images=2)
    assert (encoded.vectors_Id[3] == 0).all()  # neither text nor image
    assert {
        key: value
        for key, value in encoded.facts.items()
        if "image" in key and key not in ("image_tokens", "max_images")
    } == {"items_without_image": 3, "images": 7, "images_named": 9, "images_rejected": 1, "images_beyond_limit": 1}


# ---------------------------------------------------------------------------------------------------- shards


class Counted:
    """Counts the items that an encoder really embeds."""

    def __init__(self, monkeypatch):
        self.items, start = 0, QwenEncoder.start

        def counting(encoder, prompts, pixels, pooling):
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
    model, folder, tmp_path, monkeypatch, change
):
    counted, made = Counted(monkeypatch), embed(model, folder)
    assert counted.items == 6
    changes = {
        "batch_tokens": {"batch_tokens": 90},
        "prompt": {"prompt": "Say {item}"},
        "pooling": {"pooling": "mean"},
        "image_tokens": {"image_tokens": 12},
        "dtype": {"dtype": "bfloat16"},
    }.get(change, {})
    items = [*ITEMS[:5], ("garden hose, 30 m", "d.png"), ITEMS[6]] if change == "one text" else ITEMS
    if change == "one image":
        Image.new("RGB", SIZES["b"]).save(folder / "b.png")
    if change == "a shard is gone":
        sorted(made.shards.folder.iterdir())[0].unlink()
    other = save_qwen(tmp_path / "other", seed=1) if change == "weights" else model
    embed(other, folder, items, **changes)
    assert counted.items == {"nothing": 6, "batch_tokens": 6, "a shard is gone": 9}.get(change, 12)


def test_the_stage_writes_vectors_rejects_and_facts_and_leaves_no_shards_behind(model, folder, tmp_path, capsys):
    frame = pd.DataFrame(
        {
            "item_id": np.arange(7, dtype=np.int32),
            "raw_id": [f"r{i}" for i in range(7)],
            "title": [text or None for text, _ in ITEMS],
            "image": [image for _, image in ITEMS],
        }
    )
    write_parquet(Interactions(tmp_path / "interactions").items, frame)
    params = Params(embed=config(model, folder, template=("{title}",)))

    def embed_into(name: str) -> dict:
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


def test_a_model_that_is_not_there_says_how_to_put_it_in_place(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the Qwen2\.5-VL 'nobody/no-such-model' could not be loaded") as caught:
        QwenEncoder.load("nobody/no-such-model", "main", "float32", CPU, 16)
    assert "hf download nobody/no-such-model --local-dir" in caught.value.fix


def test_a_model_of_another_kind_is_named(tmp_path):
    transformers.T5Config(d_model=16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it is a t5, not a qwen2_5_vl"):
        QwenEncoder.load(str(tmp_path), "main", "float32", CPU, 16)


def test_a_tokenizer_without_the_image_token_is_refused(model, tmp_path):
    shutil.copytree(model, tmp_path / "broken")
    path = tmp_path / "broken/config.json"
    path.write_text(path.read_text().replace('"image_token_id": 261', '"image_token_id": 5'))
    with pytest.raises(UserError, match="its tokenizer has no"):
        QwenEncoder.load(str(tmp_path / "broken"), "main", "float32", CPU, 16)


@pytest.mark.parametrize("becomes", ["another", "gone"])
def test_an_image_that_changes_after_its_check_stops_the_run(model, folder, monkeypatch, becomes):
    load = Picture.load

    def change_first(picture):
        picture.path.unlink(missing_ok=True)
        if becomes == "another":
            Image.new("RGB", (90, 60)).save(picture.path)
        return load(picture)

    monkeypatch.setattr(Picture, "load", change_first)
    with pytest.raises(UserError, match="changed while items were embedded"):
        embed(model, folder)


def test_where_there_is_nothing_to_embed_at_all_the_template_is_named(model, folder):
    with pytest.raises(UserError, match="no item has a text or an image"):
        embed(model, folder, [("", None), ("", None)])
