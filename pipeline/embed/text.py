"""Hugging Face text encoders: tokens in, one vector per text out.

An encoder-decoder of the T5 family is loaded without its decoder; other models as they are. A text's vector is the mean
of the last hidden states over its real tokens, the model's own special tokens included, padding not.

Shape legend: I items, B texts of a batch, T tokens of the longest text, d embedding width.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import SafetensorError

from pipeline.artifacts import fingerprint
from pipeline.embed.config import EmbedConfig
from pipeline.embed.shards import Shards
from pipeline.errors import UserError
from pipeline.progress import Progress

TOKENIZE_AT_ONCE = 10_000  # texts


def text_vectors(texts: Sequence[str], config: EmbedConfig, scratch: Path) -> tuple[np.ndarray, dict[str, Any], Shards]:
    """(float32 [I, d], what goes to embeddings.json, the shards to remove once the vectors are written).

    Texts are encoded from long to short, so that a batch holds texts of about one length, and memory that is too small
    shows at once. "" becomes zeros.

    Raises:
        UserError: see `TextEncoder`; or memory ran out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = config.dtype if config.dtype != "auto" else ("bfloat16" if device.type == "cuda" else "float32")
    encoder = TextEncoder(config.model, config.revision, dtype, device)
    tokens = encoder.tokenize(texts, config.max_tokens)
    lengths = np.array([len(ids) if text else 0 for text, ids in zip(texts, tokens, strict=True)])
    order = np.argsort(-lengths, kind="stable")[:np.count_nonzero(lengths)]
    facts = {"name": encoder.name, "revision": encoder.revision, "pooling": "mean", "dtype": dtype,
             "max_tokens": config.max_tokens, "template": list(config.template)}
    key = fingerprint(facts, config.shard_items, list(texts))
    shards = Shards(scratch, key, len(order), config.shard_items)
    encoded = _encode_shards(encoder, [tokens[item] for item in order], shards, config.batch_tokens)
    vectors_Id = np.zeros((len(texts), encoded.shape[1]), dtype=np.float32)
    vectors_Id[order] = encoded
    facts |= {"fingerprint": key, "items_at_max_tokens": int((lengths == config.max_tokens).sum())}
    return vectors_Id, facts, shards


def _encode_shards(encoder: "TextEncoder", tokens: Sequence[np.ndarray], shards: Shards, budget: int) -> np.ndarray:
    """Vectors of all texts in the given order; a shard that is there already is not made again."""
    found = [shards.read(shard) for shard in range(len(shards.spans))]
    done = sum(len(vectors) for vectors in found if vectors is not None)
    if done:
        print(f"embed: resuming, {done:,} of {len(tokens):,} items are embedded already")
    parts = []
    with Progress("embed", len(tokens), "items", start=done) as progress:
        for shard, (span, vectors) in enumerate(zip(shards.spans, found, strict=True)):
            if vectors is None:
                vectors = _encode(encoder, tokens[span], budget, progress)
                shards.write(shard, vectors)
            parts.append(vectors)
    return np.concatenate(parts)


def _encode(encoder: "TextEncoder", tokens: Sequence[np.ndarray], budget: int, progress: Progress) -> np.ndarray:
    parts = []
    for batch in token_budget_batches([len(ids) for ids in tokens], budget):
        try:
            parts.append(encoder.embed(tokens[batch]))
        except torch.OutOfMemoryError:
            raise UserError(f"{encoder.device} has not enough memory for a batch of {budget:,} tokens",
                            "finished shards are kept, the next run goes on after them",
                            "lower embed.batch_tokens (or embed.max_tokens), or take a smaller embed.model") from None
        progress.update(len(parts[-1]))
    return np.concatenate(parts)


class TextEncoder:
    """A tokenizer and a model on a device.

    name: the model's name, or its folder's. revision: the commit of the weights, for a local folder the sha256 of its
    files.

    Raises:
        UserError: the model is not there, is no text encoder, or its weights are incomplete.
    """

    def __init__(self, model: str, revision: str, dtype: str, device: torch.device):
        folder = Path(model)
        self.device, self.dtype = device, dtype
        try:
            config = transformers.AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(model, revision=revision,
                                                                        trust_remote_code=False)
            self.model = _load_weights(model, revision, config, dtype).to(device).eval()
        except (OSError, ValueError, ImportError, SafetensorError, RuntimeError) as error:  # the last: sizes, memory
            raise _not_loaded(model, error) from None
        self.name = folder.name if folder.is_dir() else model
        self.revision = fingerprint(folder) if folder.is_dir() else getattr(config, "_commit_hash", None) or revision
        # T5's positions are relative: any length is read. Others have a table of so many.
        positions = getattr(config, "max_position_embeddings", None)
        self.limit = min(positions, self.tokenizer.model_max_length) if positions else sys.maxsize

    def tokenize(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """int32 token ids of each text, special tokens included, cut to `max_tokens`.

        Raises:
            UserError: the model has no positions for so many tokens.
        """
        if max_tokens > self.limit:
            raise UserError(f"embed.max_tokens is {max_tokens}, but {self.name} reads at most {self.limit}",
                            "it has no positions for more", f"set embed.max_tokens to {self.limit} or less")
        tokens: list[np.ndarray] = []
        for start in range(0, len(texts), TOKENIZE_AT_ONCE):
            batch = self.tokenizer(list(texts[start:start + TOKENIZE_AT_ONCE]), truncation=True, max_length=max_tokens)
            tokens += [np.array(ids, dtype=np.int32) for ids in batch["input_ids"]]
        return tokens

    @torch.inference_mode()
    def embed(self, tokens: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [B, d] of one batch of texts."""
        lengths = torch.tensor([len(one) for one in tokens])
        mask_BT = torch.arange(int(lengths.max())) < lengths[:, None]
        ids_BT = torch.full(mask_BT.shape, self.tokenizer.pad_token_id or 0)
        ids_BT[mask_BT] = torch.from_numpy(np.concatenate(tokens)).long()
        ids_BT, mask_BT = ids_BT.to(self.device), mask_BT.to(self.device)
        hidden_BTd = self.model(input_ids=ids_BT, attention_mask=mask_BT.long()).last_hidden_state.float()
        return mean_pool(hidden_BTd, mask_BT).cpu().numpy()


def mean_pool(hidden_BTd: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Mean over the positions where the mask is true, [B, d]."""
    kept_BTd = torch.where(mask_BT[..., None], hidden_BTd, 0.0)
    return kept_BTd.sum(dim=1) / mask_BT.sum(dim=1, keepdim=True)


def token_budget_batches(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Consecutive slices of at most `budget` positions, padding included; one text alone may exceed it.

    `lengths` must fall: the first text of a batch then is its longest.
    """
    start = 0
    while start < len(lengths):
        stop = min(start + max(1, budget // lengths[start]), len(lengths))
        yield slice(start, stop)
        start = stop


def _load_weights(model: str, revision: str, config: Any, dtype: str) -> Any:
    transformers.logging.set_verbosity_error()  # its report of unused weights: the decoder, a language-model head
    kind = transformers.AutoModelForTextEncoding if config.is_encoder_decoder else transformers.AutoModel
    loaded, report = kind.from_pretrained(
        model, revision=revision, config=config, dtype=getattr(torch, dtype), trust_remote_code=False,
        weights_only=True, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # we pool ourselves
    if missing:
        raise ValueError(f"{len(missing)} weights are not in the files, such as {missing[0]}")
    return loaded


def _not_loaded(model: str, error: Exception) -> UserError:
    first_line, _, _ = str(error).partition("\n")
    return UserError(
        f"the text encoder '{model}' could not be loaded: {first_line}",
        "embed.model must be a text encoder's name on the Hugging Face hub, or a local folder that holds one",
        f"check the name and embed.revision; without internet, run `hf download {model} --local-dir models/encoder` "
        "where there is some, bring the folder here, and set embed.model to its path")
