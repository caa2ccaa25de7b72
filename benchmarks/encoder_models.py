"""The encoders that encoders.py measures, at their published sizes: random weights, drawn tokens, counts of work."""

from typing import Any

import numpy as np
import torch
import transformers

from pipeline.embed.qwen import Prompt, QwenEncoder

FLAN_T5_XL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "num_heads": 32,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
QWEN_TEXT: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
QWEN_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "out_hidden_size": 3584,
    "tokens_per_second": 2,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
IMAGE_TOKEN = 151655
VISION_START = 151652
VISION_END = 151653
PROMPT_TOKENS = 32  # of the chat around an item, images apart


# ---------------------------------------------------------------------------------------------------- Flan-T5-XL


def t5_config(layers: int) -> Any:
    return transformers.T5Config(**{**FLAN_T5_XL, "num_layers": layers})


def t5_flops(config: Any, lengths: np.ndarray) -> float:
    inner = config.num_heads * config.d_kv
    weights = 4 * config.d_model * inner + 3 * config.d_model * config.d_ff
    return float(config.num_layers * 2 * (weights * lengths.sum() + 2 * inner * np.square(lengths, dtype=float).sum()))


def t5_texts(config: Any, lengths: np.ndarray) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, config.vocab_size, length).astype(np.int32) for length in lengths]


# ---------------------------------------------------------------------------------------------------- Qwen2.5-VL-7B


def qwen_config(layers: int = 28, depth: int = 32) -> Any:
    return transformers.Qwen2_5_VLConfig(
        text_config={**QWEN_TEXT, "num_hidden_layers": layers},
        image_token_id=IMAGE_TOKEN,
        vision_config={**QWEN_VISION, "depth": depth},
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def qwen_flops(config: Any, lengths: np.ndarray, patches: int, images: int) -> float:
    """Return the FLOPs of items of these lengths, and of `images` images of `patches` patches each."""
    text, vision = config.text_config, config.vision_config
    d, head = text.hidden_size, text.hidden_size // text.num_attention_heads
    layer = d * (2 * d + 2 * text.num_key_value_heads * head) + 3 * d * text.intermediate_size
    squares = np.square(lengths, dtype=float).sum()
    language = text.num_hidden_layers * 2 * (layer * lengths.sum() + d * squares)  # half of the square: causal
    w, window = vision.hidden_size, (vision.window_size // vision.patch_size) ** 2
    block = 4 * w * w + 3 * w * vision.intermediate_size
    whole = sum(i < vision.depth for i in vision.fullatt_block_indexes)
    scores = 2 * w * (whole * patches + (vision.depth - whole) * min(window, patches))  # per patch, of all blocks
    merger = ((4 * w) ** 2 + 4 * w * d) / 4  # per patch
    return float(language + images * patches * 2 * (vision.depth * block + scores + merger))


class NoTokenizer:
    """Stands where a tokenizer would; tokens are drawn."""

    def get_added_vocab(self) -> dict[str, int]:
        return {"<|im_start|>": 151644}


def qwen_encoder(config: Any, device: torch.device, dtype: torch.dtype) -> QwenEncoder:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return QwenEncoder(qwen_model(config, device, dtype), NoTokenizer(), Qwen2VLImageProcessorPil(), device, 256)


def qwen_model(config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return transformers.Qwen2_5_VLModel(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def qwen_prompts(grid: tuple[int, int], lengths: np.ndarray) -> list[Prompt]:
    """Chats with one image (none where the grid is empty) and a text of so many tokens."""
    rng, image = np.random.default_rng(1), grid[0] * grid[1] // 4
    prompts = []
    for length in lengths:
        words = rng.integers(0, 150_000, length + PROMPT_TOKENS).astype(np.int32)
        ids = np.concatenate([words[:16], [VISION_START], np.full(image, IMAGE_TOKEN), [VISION_END], words[16:]])
        prompts.append(Prompt(ids.astype(np.int32), (grid,)) if image else Prompt(words, ()))
    return prompts
