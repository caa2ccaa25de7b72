"""Load published weights from the Hugging Face hub or a local folder: all weights or an error, and never their code."""

import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from pipeline.artifacts import fingerprint
from pipeline.errors import UserError

ENCODER_DECODERS = ("t5", "mt5", "umt5", "t5gemma")  # whose encoder `transformers` can save alone
# The libraries raise these for a model that is absent, of another kind, damaged or too large (RuntimeError).
NOT_LOADED = (OSError, ValueError, ImportError, SafetensorError, RuntimeError)


def load_config(model: str, revision: str) -> Any:
    """Return the model's configuration. Raises one of NOT_LOADED."""
    return transformers.AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)


def load_tokenizer(model: str, revision: str) -> Any:
    """Return the model's tokenizer. Raises one of NOT_LOADED."""
    return transformers.AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)


def load_weights(model: str, revision: str, config: Any, dtype: str) -> Any:
    """Return the model on the CPU, without its head and without the decoder of an encoder-decoder.

    Raises:
        ValueError: weights are missing, and would be random. Other failures raise another one of NOT_LOADED.
    """
    # Silences the report of unused weights, which are the decoder's and the language-model head's.
    transformers.logging.set_verbosity(logging.ERROR)
    # `T5EncoderModel.save_pretrained` writes is_encoder_decoder: false, and AutoModel would still want a decoder.
    has_encoder = config.is_encoder_decoder or config.model_type in ENCODER_DECODERS
    kind = transformers.AutoModelForTextEncoding if has_encoder else transformers.AutoModel
    loaded, report = kind.from_pretrained(
        model,
        revision=revision,
        config=config,
        dtype=getattr(torch, dtype),
        trust_remote_code=False,
        use_safetensors=True,  # a .bin file is a pickle, which is never opened
        output_loading_info=True,
    )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # we pool ourselves
    if missing:
        raise ValueError(f"{len(missing)} weights are not in the files, such as {missing[0]}")
    return loaded


def name_and_revision(model: str, revision: str, config: Any) -> tuple[str, str]:
    """Return a folder's name and the sha256 of its files, or a hub name and its commit, for embeddings.json."""
    folder = Path(model)
    if folder.is_dir():
        return folder.name, fingerprint(folder)
    return model, getattr(config, "_commit_hash", None) or revision


def not_loaded(model: str, kind: str, error: Exception) -> UserError:
    """Return the error to raise for any of NOT_LOADED. kind: what embed.model should be, such as "text encoder"."""
    first_line, _, _ = str(error).partition("\n")
    return UserError(
        f"the {kind} '{model}' could not be loaded: {first_line}",
        f"embed.model must be a {kind}'s name on the Hugging Face hub, or a local folder that holds one",
        f"check the name and embed.revision; if this machine has no internet, run `hf download {model} --local-dir "
        "models/encoder` on one that has it, copy the folder here, and set embed.model to its path",
    )
