"""Embed texts by a Hugging Face text encoder: one vector per text.

Of a T5 only the encoder is loaded, and t5.py runs it; other models run as `transformers` implements them. A text's
vector is the mean of the last hidden states over its tokens; the model's special tokens count, padding does not.

Shape legend: I items, B texts of a batch, S tokens of the longest text, d width of the embeddings.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts import fingerprint
from pipeline.embed.batches import in_step, pick_dtype, send_to_device, token_budget_batches
from pipeline.embed.config import EmbedConfig
from pipeline.embed.shards import EncodedItems, Shards, Share
from pipeline.embed.t5 import FAMILY, T5Encoder
from pipeline.embed.weights import NOT_LOADED, load_config, load_tokenizer, load_weights, name_and_revision, not_loaded
from pipeline.errors import UserError
from pipeline.machine import pick_device

TOKENIZE_AT_ONCE = 10_000  # texts that one call of the tokenizer gets


def text_vectors(texts: Sequence[str], config: EmbedConfig, scratch: Path) -> EncodedItems | None:
    """Embed all texts; "" becomes zeros.

    Texts are encoded from long to short, so that a batch holds texts of about one length, and too little memory shows
    at once.

    Returns:
        float32 [I, d] and facts; None in a process that only helps another one (shards.py).

    Raises:
        UserError: see `TextEncoder`; or memory ran out.
    """
    device = pick_device("auto")
    share = Share.of_environment()
    encoder = TextEncoder(config.model, config.revision, pick_dtype(config.dtype, device), device)
    tokens = encoder.tokenize(texts, config.max_tokens)

    # Lengths 0 (an empty text), 7, 9 -> order [2, 1]
    lengths = np.array([len(ids) if text else 0 for text, ids in zip(texts, tokens, strict=True)])
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]

    # All that decides the vectors goes into the fingerprint, which names the folder of the shards.
    facts = {
        "name": encoder.name,
        "revision": encoder.revision,
        "pooling": "mean",
        "dtype": encoder.dtype,
        "max_tokens": config.max_tokens,
        "template": list(config.template),
    }
    key = fingerprint(facts, config.shard_items, list(texts))
    shards = Shards(scratch, key, len(order), config.shard_items, lengths[order])

    def encode(span: slice) -> Iterator[np.ndarray]:
        chosen = [tokens[item] for item in order[span]]
        batches = token_budget_batches([len(ids) for ids in chosen], config.batch_tokens)
        return in_step(encoder.start, (chosen[batch] for batch in batches), config.batch_tokens)

    encoded = shards.fill(encode, share)
    if encoded is None:
        return None
    vectors_Id = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    vectors_Id[order] = encoded
    facts |= {"fingerprint": key, "items_at_max_tokens": int((lengths == config.max_tokens).sum())}
    return EncodedItems(vectors_Id, facts, shards)


class TextEncoder:
    """A tokenizer and a model on a device.

    name: the model's name, or its folder's. revision: the commit of the weights, for a local folder the sha256 of its
    files.

    Raises:
        UserError: the model is not found, is no text encoder, or its weights are incomplete.
    """

    def __init__(self, model: str, revision: str, dtype: str, device: torch.device):
        self.device = device
        self.dtype = dtype
        try:
            config = load_config(model, revision)
            self.tokenizer = load_tokenizer(model, revision)
            loaded = load_weights(model, revision, config, dtype).eval()
            self.model = (T5Encoder.of_transformers(loaded) if config.model_type in FAMILY else loaded).to(device)
        except NOT_LOADED as error:
            raise not_loaded(model, "text encoder", error) from None
        self.name, self.revision = name_and_revision(model, revision, config)
        # T5's positions are relative, so it reads texts of any length. Other models have a table of absolute positions.
        positions = getattr(config, "max_position_embeddings", None)
        self.limit = min(positions, self.tokenizer.model_max_length) if positions else sys.maxsize

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Return the token ids of each text, int32, special tokens included, cut to `max_tokens`.

        Raises:
            UserError: the model has no positions for so many tokens.
        """
        if max_tokens > self.limit:
            raise UserError(
                f"embed.max_tokens is {max_tokens}, but {self.name} reads at most {self.limit}",
                "the model has no positions for more tokens",
                f"set embed.max_tokens to {self.limit} or less",
            )
        tokens: list[np.ndarray] = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            batch = self.tokenizer(
                list(texts[start : start + TOKENIZE_AT_ONCE]), truncation=True, max_length=max_tokens
            )
            tokens += [np.array(ids, dtype=np.int32) for ids in batch["input_ids"]]
        return tokens

    def embed(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of one batch of texts, float32 [B, d]."""
        return self.start(tokens).cpu().numpy()

    @torch.inference_mode()
    def start(self, tokens: Sequence[np.ndarray]) -> Tensor:
        """Start to compute what `embed` returns, and return it on the device without waiting for it."""
        ids_BS, mask_BS = (send_to_device(x, self.device) for x in padded(tokens, self.tokenizer.pad_token_id or 0))
        if isinstance(self.model, T5Encoder):
            hidden_BSd = self.model(ids_BS, mask_BS)
        else:
            hidden_BSd = self.model(input_ids=ids_BS, attention_mask=mask_BS.long()).last_hidden_state.float()
        return mean_pool(hidden_BSd, mask_BS)


def padded(tokens: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Return (int64 ids [B, S], bool mask [B, S]) of one batch of texts."""
    # ids [5, 6], [7] -> ids_BS [[5, 6], [7, pad]], mask_BS [[1, 1], [1, 0]]
    lengths = torch.tensor([len(one) for one in tokens])
    mask_BS = torch.arange(int(lengths.max())) < lengths[:, None]
    ids_BS = torch.full(mask_BS.shape, pad)
    ids_BS[mask_BS] = torch.from_numpy(np.concatenate(tokens)).long()
    return ids_BS, mask_BS


def mean_pool(hidden_BSd: Tensor, mask_BS: Tensor) -> Tensor:
    """Return the mean over the positions where the mask is true, [B, d]."""
    real_BSd = torch.where(mask_BS[..., None], hidden_BSd, 0.0)
    return real_BSd.sum(dim=1) / mask_BS.sum(dim=1, keepdim=True)
