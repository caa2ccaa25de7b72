"""Tiny text encoders with random weights, saved as the published ones are, and texts in their words."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from settings import some
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from pipeline.embed.config import EmbedConfig

WORDS = [f"word{i}" for i in range(60)]
CPU = torch.device("cpu")
ITEMS = 37


def save_tokenizer(folder: Path) -> None:
    vocabulary = {name: i for i, name in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_model(folder: Path, kind: str) -> str:
    """A whole T5 (decoder too), or a BERT with its language-model head, as published on the hub."""
    torch.manual_seed(0)
    model: transformers.PreTrainedModel
    if kind == "t5":
        t5 = transformers.T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
        model = transformers.T5ForConditionalGeneration(t5)
    else:
        bert = transformers.BertConfig(
            vocab_size=64,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=32,
            max_position_embeddings=24,
        )
        model = transformers.BertForMaskedLM(bert)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


def texts(seed: int = 0, items: int = ITEMS) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(items)]


def config(model: str, **changes: Any) -> EmbedConfig:
    return some(
        EmbedConfig,
        **{"encoder": "text", "model": model, "max_tokens": 20, "batch_tokens": 60, "shard_items": 5, **changes},
    )
