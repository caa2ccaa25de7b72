"""Text encoders, on tiny random models with a tiny tokenizer that the tests make themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_text import CPU, config, save_model, save_tokenizer, texts
from torch import nn
from typed import present

from pipeline.embed.batches import token_budget_batches
from pipeline.embed.t5 import T5Encoder
from pipeline.embed.text import TextEncoder, mean_pool, text_vectors
from pipeline.errors import UserError


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_vector_is_the_same_alone_and_in_a_batch_of_other_lengths(
    folders: dict[str, str], kind: str, tmp_path: Path
) -> None:
    all_texts = texts()
    together, _, _ = present(text_vectors(all_texts, config(folders[kind]), tmp_path))
    encoder = TextEncoder(folders[kind], "main", "float32", CPU)
    for text, vector in zip(all_texts, together, strict=True):
        assert encoder.embed(encoder.tokenize([text], 20))[0] == pytest.approx(vector, abs=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_a_vector_is_the_mean_of_the_models_last_hidden_states(folders: dict[str, str], kind: str) -> None:
    encoder = TextEncoder(folders[kind], "main", "float32", CPU)
    whole = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    stack = whole.get_encoder() if kind == "t5" else whole
    for text in texts(1, 5):
        tokens = encoder.tokenize([text], 20)
        with torch.no_grad():
            states = stack(input_ids=torch.tensor(np.array(tokens)).long()).last_hidden_state[0].numpy()
        assert encoder.embed(tokens)[0] == pytest.approx(states.mean(axis=0), abs=1e-5)


def test_mean_pooling_equals_a_slow_reference_and_ignores_padding() -> None:
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


def test_only_the_encoder_of_a_t5_is_loaded(folders: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, of_transformers = [], T5Encoder.of_transformers

    def watched(model: nn.Module) -> T5Encoder:
        loaded.append(type(model).__name__)
        return of_transformers(model)

    monkeypatch.setattr(T5Encoder, "of_transformers", watched)
    model = TextEncoder(folders["t5"], "main", "float32", CPU).model
    assert loaded == ["T5EncoderModel"]
    whole = transformers.AutoModel.from_pretrained(folders["t5"]).get_encoder()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("family", ["T5", "MT5"])
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu", "gated-silu"])
def test_the_rearranged_t5_gives_the_states_of_transformers_own(family: str, feed_forward: str) -> None:
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
    for block in original.encoder.block:  # the published weights are all ones
        for layer in block.layer:
            torch.nn.init.uniform_(layer.layer_norm.weight, 0.5, 1.5)
    ids, lengths = torch.randint(0, 64, (5, 37)), torch.tensor([37, 21, 9, 2, 1])
    mask = torch.arange(37) < lengths[:, None]
    with torch.no_grad():
        expected = original(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        states = T5Encoder.of_transformers(original)(ids, mask)
    assert torch.allclose(states[mask], expected[mask], atol=2e-5)


def test_a_relative_of_t5_that_is_built_otherwise_runs_as_transformers_has_it(tmp_path: Path) -> None:
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


def test_batches_keep_to_the_budget_cover_all_and_let_a_long_text_stand_alone() -> None:
    lengths = sorted([95, *np.random.default_rng(0).integers(1, 30, 100).tolist()], reverse=True)
    batches = list(token_budget_batches(lengths, 60))
    assert [i for batch in batches for i in range(101)[batch]] == list(range(101))
    assert batches[0] == slice(0, 1)
    for batch in batches[1:]:
        own = lengths[batch]
        assert max(own) * len(own) <= 60


def test_texts_without_a_word_become_zeros_and_long_ones_are_cut_and_counted(
    folders: dict[str, str], tmp_path: Path
) -> None:
    vectors, facts, _ = present(
        text_vectors(["", "word1 word2 word3", "word1 word2 word9", ""], config(folders["t5"], max_tokens=3), tmp_path)
    )
    assert (vectors[[0, 3]] == 0).all()
    assert (vectors[1] == vectors[2]).all()
    assert facts["items_at_max_tokens"] == 2


def test_bfloat16_is_close_to_float32(folders: dict[str, str], tmp_path: Path) -> None:
    full, _, _ = present(text_vectors(texts(), config(folders["t5"]), tmp_path))
    half, facts, _ = present(text_vectors(texts(), config(folders["t5"], dtype="bfloat16"), tmp_path))
    assert facts["dtype"] == "bfloat16"
    assert 0 < np.abs(half - full).max() < 0.05 * np.abs(full).max()


# ---------------------------------------------------------------------------------------------------- what can be wrong


def test_a_model_that_is_not_there_says_how_to_put_it_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the text encoder 'nobody/no-such-model' could not be loaded") as caught:
        TextEncoder("nobody/no-such-model", "main", "float32", CPU)
    assert "hf download nobody/no-such-model --local-dir" in caught.value.fix
    assert "set embed.model to its path" in caught.value.fix


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_folder' could not be loaded"):
        TextEncoder(str(tmp_path / "no_folder"), "main", "float32", CPU)


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "damaged", "bert")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(folder, "main", "float32", CPU)


def test_weights_of_another_shape_than_the_configuration_says_are_an_error(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "shapes", "bert")
    config = tmp_path / "shapes" / "config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 32', '"intermediate_size": 48'))
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(folder, "main", "float32", CPU)


def test_weights_that_the_files_lack_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path / "partial", "bert")
    path = tmp_path / "partial" / "model.safetensors"
    weights = load_file(path)
    dropped = next(name for name in weights if "layer.1.output.dense.weight" in name)
    save_file({name: tensor for name, tensor in weights.items() if name != dropped}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="1 weights are not in the files, such as encoder"):
        TextEncoder(folder, "main", "float32", CPU)


def test_code_that_comes_with_a_model_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "custom"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}')
    (folder / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(str(folder), "main", "float32", CPU)


def test_more_tokens_than_the_model_has_positions_for_are_refused(folders: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"embed\.max_tokens is 30, but .* reads at most 24"):
        TextEncoder(folders["bert"], "main", "float32", CPU).tokenize(["word1"], 30)


def test_too_little_memory_says_what_to_lower(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TextEncoder, "start", no_room)
    with pytest.raises(UserError, match="not enough memory") as caught:
        text_vectors(texts(), config(folders["t5"]), tmp_path)
    assert "lower embed.batch_tokens" in caught.value.fix
