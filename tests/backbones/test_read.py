"""Backbones that read one vector per item, whatever made the vector."""

import numpy as np
import pytest
import torch
from networks import MakeBatch, MakeModel

from pipeline.backbones import build_backbone
from pipeline.backbones.t5 import T5
from pipeline.packing.histories import Histories

CODES = (60,)  # one level: an item is a single token, so that its vector may as well come from the token table


@pytest.fixture
def pair(make_model: MakeModel) -> tuple[T5, T5]:
    """(a backbone with a token table, one that only reads vectors, the same weights)."""
    whole = make_model(60, CODES, separators=False, recency_items=4)
    reader = build_backbone(whole.config, whole.catalogue, vectors_only=True).eval()
    assert isinstance(reader, T5)
    reader.load_state_dict({name: value for name, value in whole.state_dict().items() if name in reader.state_dict()})
    return whole, reader


def test_a_reader_has_no_tokens_no_decoder_and_no_heads(pair: tuple[T5, T5]) -> None:
    _, reader = pair
    parts = {name.split(".")[0] for name in reader.state_dict()}
    assert parts == {"encoder", "encoder_norm", "encoder_bias", "recency"}


def test_what_is_read_is_the_state_of_the_last_item(pair: tuple[T5, T5], make_batch: MakeBatch) -> None:
    whole, reader = pair
    histories, _ = make_batch(whole)
    states_Wd = reader.read(whole.tokens(whole.tokens_IS[histories.items_N, 0]), histories)
    expected_Td = whole.encode(histories).states_Td
    torch.testing.assert_close(states_Wd, expected_Td[histories.lengths_W.cumsum(0) - 1])


def test_a_window_is_read_as_if_it_were_alone(pair: tuple[T5, T5], make_batch: MakeBatch) -> None:
    _, reader = pair
    histories, _ = make_batch(pair[0])
    vectors_Nd = torch.randn(len(histories.items_N), reader.config.d_model)
    together_Wd, start = reader.read(vectors_Nd, histories), 0
    for row, length in enumerate(histories.lengths_W.tolist()):
        alone = Histories.pack(histories.items_N[start : start + length].numpy(), np.array([0, length]))
        torch.testing.assert_close(together_Wd[row : row + 1], reader.read(vectors_Nd[start : start + length], alone))
        start += length
