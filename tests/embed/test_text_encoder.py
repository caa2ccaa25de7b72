"""Text encoders, on tiny random models with a tiny tokenizer that the tests make themselves."""

import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline.artifacts import Embeddings, Interactions, write_parquet
from pipeline.config import Params
from pipeline.embed import shards
from pipeline.embed.batches import token_budget_batches
from pipeline.embed.config import EmbedConfig
from pipeline.embed.stage import run
from pipeline.embed.t5 import T5Encoder
from pipeline.embed.text import TextEncoder, mean_pool, text_vectors
from pipeline.errors import UserError

WORDS = [f"word{i}" for i in range(60)]
CPU = torch.device("cpu")
ITEMS = 37


def save_tokenizer(folder) -> None:
    vocabulary = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_model(folder, kind: str) -> str:
    """A whole T5 (decoder too), or a BERT with its language-model head, as one finds them on the hub."""
    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
        model = transformers.T5ForConditionalGeneration(config)
    else:
        config = transformers.BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=24,
        )
        model = transformers.BertForMaskedLM(config)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return {kind: save_model(tmp_path_factory.mktemp(kind), kind) for kind in ("t5", "bert")}


def texts(seed: int = 0, items: int = ITEMS) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(items)]


def config(model: str, **changes) -> EmbedConfig:
    return EmbedConfig(
        **{"encoder": "text", "model": model, "max_tokens": 20, "batch_tokens": 60, "shard_items": 5, **changes}
    )


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_vector_is_the_same_alone_and_in_a_batch_of_other_lengths(folders, kind, tmp_path):
    all_texts = texts()
    together, _, _ = text_vectors(all_texts, config(folders[kind]), tmp_path)
    encoder = TextEncoder(folders[kind], "main", "float32", CPU)
    for text, vector in zip(all_texts, together, strict=True):
        assert encoder.embed(encoder.tokenize([text], 20))[0] == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_vector_is_the_mean_of_the_models_last_hidden_states(folders, kind):
    encoder = TextEncoder(folders[kind], "main", "float32", CPU)
    whole = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    stack = whole.get_encoder() if kind == "t5" else whole
    for text in texts(1, 5):
        tokens = encoder.tokenize([text], 20)
        with torch.no_grad():
            states = stack(input_ids=torch.tensor(np.array(tokens)).long()).last_hidden_state[0].numpy()
        assert encoder.embed(tokens)[0] == pytest.approx(states.mean(axis=0), abs=1e-5)


def test_mean_pooling_equals_a_slow_reference_and_ignores_padding():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 9, 4, generator=generator)
    lengths = [9, 1, 4, 7, 2, 3]
    mask = torch.tensor([[position < length for position in range(9)] for length in lengths])
    hidden[~mask] = float("nan")  # whatever the model leaves on padding
    pooled = mean_pool(hidden, mask)
    for row, length in enumerate(lengths):
        assert pooled[row].tolist() == pytest.approx(
            [sum(hidden[row, t, d].item() for t in range(length)) / length for d in range(4)], abs=1e-6
        )


def test_only_the_encoder_of_a_t5_is_loaded(folders, monkeypatch):
    loaded, of_transformers = [], T5Encoder.of_transformers
    monkeypatch.setattr(
        T5Encoder, "of_transformers", lambda model: loaded.append(type(model).__name__) or of_transformers(model)
    )
    model = TextEncoder(folders["t5"], "main", "float32", CPU).model
    assert loaded == ["T5EncoderModel"]
    whole = transformers.AutoModel.from_pretrained(folders["t5"]).get_encoder()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("family", ["T5", "MT5"])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu", "gated-silu"])
def test_the_rearranged_t5_gives_the_states_of_transformers_own(family, feed_forward):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64,
        d_model=24,
        d_kv=8,
        d_ff=40,
        num_layers=3,
        num_heads=4,
        feed_forward_proj=feed_forward,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
    )
    original = getattr(transformers, f"{family}EncoderModel")(config).eval()
    for block in original.encoder.block:  # as published they are all ones
        for layer in block.layer:
            torch.nn.init.uniform_(layer.layer_norm.weight, 0.5, 1.5)
    ids, lengths = torch.randint(0, 64, (5, 37)), torch.tensor([37, 21, 9, 2, 1])
    mask = torch.arange(37) < lengths[:, None]
    with torch.no_grad():
        expected = original(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        states = T5Encoder.of_transformers(original)(ids, mask)
    assert torch.allclose(states[mask], expected[mask], atol=2e-5)


def test_a_relative_of_t5_that_is_built_otherwise_runs_as_transformers_has_it(tmp_path):
    """UMT5 has a bias in every block."""
    config = transformers.UMT5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    original = transformers.UMT5ForConditionalGeneration(config).eval()
    original.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = TextEncoder(str(tmp_path), "main", "float32", CPU)
    tokens = encoder.tokenize(["word1 word2 word3"], 20)
    with torch.no_grad():
        states = original.get_encoder()(input_ids=torch.from_numpy(tokens[0]).long()[None]).last_hidden_state[0]
    assert encoder.embed(tokens)[0] == pytest.approx(states.mean(0).numpy(), abs=1e-5)


def test_batches_keep_to_the_budget_cover_all_and_let_a_long_text_stand_alone():
    lengths = sorted([95, *np.random.default_rng(0).integers(1, 30, 100).tolist()], reverse=True)
    batches = list(token_budget_batches(lengths, 60))
    assert [i for batch in batches for i in range(101)[batch]] == list(range(101))
    assert batches[0] == slice(0, 1)
    for batch in batches[1:]:
        own = lengths[batch]
        assert max(own) * len(own) <= 60


def test_texts_without_a_word_become_zeros_and_long_ones_are_cut_and_counted(folders, tmp_path):
    vectors, facts, _ = text_vectors(
        ["", "word1 word2 word3", "word1 word2 word9", ""], config(folders["t5"], max_tokens=3), tmp_path
    )
    assert (vectors[[0, 3]] == 0).all()
    assert (vectors[1] == vectors[2]).all()
    assert facts["items_at_max_tokens"] == 2


def test_bfloat16_is_close_to_float32(folders, tmp_path):
    full, _, _ = text_vectors(texts(), config(folders["t5"]), tmp_path)
    half, facts, _ = text_vectors(texts(), config(folders["t5"], dtype="bfloat16"), tmp_path)
    assert facts["dtype"] == "bfloat16"
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


# ---------------------------------------------------------------------------------------------------- resuming


class Counted:
    """Counts the texts that an encoder really embeds."""

    def __init__(self, monkeypatch):
        self.texts, start = 0, TextEncoder.start

        def counting(encoder, tokens):
            self.texts += len(tokens)
            return start(encoder, tokens)

        monkeypatch.setattr(TextEncoder, "start", counting)


def test_only_missing_and_damaged_shards_are_made_again(folders, tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    whole, _, kept = text_vectors(texts(), config(folders["t5"]), tmp_path)
    files = sorted(kept.folder.iterdir())
    assert (len(files), counted.texts) == (8, ITEMS)  # seven of five items, one of two
    files[2].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-8])
    counted.texts = 0
    again, _, _ = text_vectors(texts(), config(folders["t5"]), tmp_path)
    assert counted.texts == 10
    assert again.tobytes() == whole.tobytes()


def other_model(folders, tmp_path):
    changed = transformers.T5ForConditionalGeneration.from_pretrained(folders["t5"])
    torch.nn.init.normal_(changed.shared.weight)
    changed.save_pretrained(tmp_path / "other")
    save_tokenizer(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.mark.parametrize(
    "change", ["template", "max_tokens", "dtype", "shard_items", "weights", "one text", "nothing", "batch_tokens"]
)
def test_shards_are_taken_only_where_all_that_decides_the_vectors_is_equal(folders, tmp_path, monkeypatch, change):
    counted = Counted(monkeypatch)
    text_vectors(texts(), config(folders["t5"]), tmp_path / "scratch")
    assert counted.texts == ITEMS
    changes = {
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
    # a smaller batch is what one turns to when memory ran out: finished shards stay good
    assert counted.texts == (ITEMS if change in ("nothing", "batch_tokens") else 2 * ITEMS)


@pytest.fixture
def interactions(tmp_path):
    items = pd.DataFrame(
        {"item_id": np.arange(ITEMS, dtype=np.int32), "raw_id": [f"r{i}" for i in range(ITEMS)], "title": texts()}
    )
    write_parquet(Interactions(tmp_path / "interactions").items, items)
    return tmp_path / "interactions"


def test_the_stage_states_the_encoder_and_leaves_no_shards_behind(folders, interactions, tmp_path):
    params = Params(embed=config(folders["bert"]))
    summary = run(params, interactions=interactions, output=tmp_path / "out", scratch=tmp_path / "scratch")
    assert summary["name"] == folders["bert"].rsplit("/", 1)[1]
    assert (summary["pooling"], summary["dtype"], summary["dimensions"]) == ("mean", "float32", 16)
    assert len(summary["revision"]) == 64
    assert Embeddings.read(tmp_path / "out").encoder == summary
    assert not list((tmp_path / "scratch").rglob("*.safetensors"))
    run(params, interactions=interactions, output=tmp_path / "again", scratch=tmp_path / "scratch")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


SLOW_RUN = """
import sys, time
from pathlib import Path
from pipeline.config import Params
from pipeline.embed import shards
from pipeline.embed.batches import token_budget_batches
from pipeline.embed.config import EmbedConfig
from pipeline.embed.stage import run
from pipeline.embed.text import TextEncoder
start = TextEncoder.start
TextEncoder.start = lambda self, tokens: (time.sleep(0.3), start(self, tokens))[1]
folder, model = Path(sys.argv[1]), sys.argv[2]
config = EmbedConfig(encoder="text", model=model, max_tokens=20, batch_tokens=60, shard_items=5)
run(Params(embed=config), interactions=folder / "interactions", output=folder / "out", scratch=folder / "scratch")
"""


@pytest.mark.slow
def test_after_sigkill_only_the_shards_that_are_missing_are_made(folders, interactions, tmp_path, monkeypatch):
    process = subprocess.Popen([sys.executable, "-c", SLOW_RUN, str(tmp_path), folders["t5"]])
    scratch = tmp_path / "scratch"
    while len(list(scratch.rglob("*.safetensors"))) < 3:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = len(list(scratch.rglob("*.safetensors")))
    assert 3 <= kept < 8
    assert not (tmp_path / "out").exists()
    counted = Counted(monkeypatch)
    params = Params(embed=config(folders["t5"]))
    run(params, interactions=interactions, output=tmp_path / "out", scratch=scratch)
    assert counted.texts == ITEMS - 5 * kept
    run(params, interactions=interactions, output=tmp_path / "whole", scratch=tmp_path / "fresh")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


# ---------------------------------------------------------------------------------------------------- several processes


def as_process(monkeypatch, rank: int, size: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


def test_processes_make_a_shard_in_turn_and_the_first_one_gathers_all(folders, tmp_path, monkeypatch):
    whole, _, _ = text_vectors(texts(), config(folders["t5"]), tmp_path / "alone")
    counted = Counted(monkeypatch)
    for rank, items in ((1, 12), (2, 10)):  # shards 1, 4, 7 (the last one, of two items), and 2, 5
        as_process(monkeypatch, rank, 3)
        counted.texts = 0
        assert text_vectors(texts(), config(folders["t5"]), tmp_path) is None
        assert counted.texts == items
    as_process(monkeypatch, 0, 3)
    counted.texts = 0
    together, _, _ = text_vectors(texts(), config(folders["t5"]), tmp_path)
    assert counted.texts == 15
    assert together.tobytes() == whole.tobytes()


def test_the_first_process_makes_what_another_one_left_undone(folders, tmp_path, monkeypatch):
    whole, _, _ = text_vectors(texts(), config(folders["t5"]), tmp_path / "alone")
    as_process(monkeypatch, 0, 2)
    monkeypatch.setattr(shards, "PATIENCE", 0.1)
    assert text_vectors(texts(), config(folders["t5"]), tmp_path)[0].tobytes() == whole.tobytes()


def test_a_process_that_helps_writes_no_result(folders, interactions, tmp_path, monkeypatch):
    as_process(monkeypatch, 1, 2)
    assert (
        run(
            Params(embed=config(folders["t5"])),
            interactions=interactions,
            output=tmp_path / "out",
            scratch=tmp_path / "scratch",
        )
        == {}
    )
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "scratch").rglob("*.safetensors"))


# ---------------------------------------------------------------------------------------------------- what can be wrong


def test_a_model_that_is_not_there_says_how_to_put_it_in_place(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the text encoder 'nobody/no-such-model' could not be loaded") as caught:
        TextEncoder("nobody/no-such-model", "main", "float32", CPU)
    assert "hf download nobody/no-such-model --local-dir" in caught.value.fix
    assert "set embed.model to its path" in caught.value.fix


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no_folder' could not be loaded"):
        TextEncoder(str(tmp_path / "no_folder"), "main", "float32", CPU)


def test_damaged_weights_are_an_error(tmp_path):
    folder = save_model(tmp_path / "damaged", "bert")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(folder, "main", "float32", CPU)


def test_weights_of_another_shape_than_the_configuration_says_are_an_error(tmp_path):
    folder = save_model(tmp_path / "shapes", "bert")
    config = tmp_path / "shapes" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 32', '"intermediate_size": 48'))
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(folder, "main", "float32", CPU)


def test_weights_that_the_files_lack_are_never_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path / "partial", "bert")
    path = tmp_path / "partial" / "model.safetensors"
    weights = load_file(path)
    dropped = next(name for name in weights if "layer.1.output.dense.weight" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != dropped}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weights are not in the files, such as encoder"):
        TextEncoder(folder, "main", "float32", CPU)


def test_code_that_comes_with_a_model_is_never_run(tmp_path):
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}')
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(str(folder), "main", "float32", CPU)


def test_more_tokens_than_the_model_has_positions_for_are_refused(folders):
    with pytest.raises(UserError, match=r"embed\.max_tokens is 30, but .* reads at most 24"):
        TextEncoder(folders["bert"], "main", "float32", CPU).tokenize(["word1"], 30)


def test_too_little_memory_says_what_to_lower(folders, tmp_path, monkeypatch):
    def no_room(encoder, tokens):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TextEncoder, "start", no_room)
    with pytest.raises(UserError, match="not enough memory") as caught:
        text_vectors(texts(), config(folders["t5"]), tmp_path)
    assert "lower embed.batch_tokens" in caught.value.fix
