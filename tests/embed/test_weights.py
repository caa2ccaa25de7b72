"""Model folders of others: an encoder that was saved alone loads, and a pickle is never opened."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_text import CPU, save_model, texts

from pipeline.embed.text import TextEncoder
from pipeline.errors import UserError


def test_an_encoder_saved_alone_gives_the_vectors_of_the_whole_model(tmp_path: Path) -> None:
    whole = save_model(tmp_path / "whole", "t5")
    alone = save_model(tmp_path / "alone", "t5")
    transformers.T5EncoderModel.from_pretrained(whole).save_pretrained(alone)
    assert "decoder.block" not in (tmp_path / "alone/model.safetensors").read_bytes().decode("latin-1")
    first, second = (TextEncoder(folder, "main", "float32", CPU) for folder in (whole, alone))
    tokens = first.tokenize(texts(), 20)
    np.testing.assert_array_equal(first.embed(tokens), second.embed(tokens))


def test_weights_in_a_pickle_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "bert")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded"):
        TextEncoder(folder, "main", "float32", CPU)
