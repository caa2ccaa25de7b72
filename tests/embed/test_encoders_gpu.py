"""Both encoder families on a GPU, where other kernels run: bfloat16 there against float32 on the CPU. Needs a GPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_qwen import save_qwen

from pipeline.embed.qwen import QwenEncoder
from pipeline.embed.t5 import T5Encoder
from pipeline.embed.text import mean_pool

pytestmark = pytest.mark.gpu
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    found: np.ndarray = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
    return found


def test_t5_gives_the_same_vectors_in_batches_of_any_length_and_alone() -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64, d_model=128, d_kv=64, d_ff=256, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    original = transformers.T5EncoderModel(config).eval()
    ids, lengths = torch.randint(0, 64, (6, 90)), torch.tensor([90, 55, 31, 8, 2, 1])
    encoder = T5Encoder.of_transformers(original)
    with torch.inference_mode():
        mask = torch.arange(90) < lengths[:, None]
        expected = mean_pool(encoder(ids, mask), mask).numpy()
        encoder = encoder.to(GPU, torch.bfloat16)
        ids, mask = ids.to(GPU), mask.to(GPU)
        together = mean_pool(encoder(ids, mask), mask).cpu().numpy()
        alone = np.concatenate(
            [
                mean_pool(encoder(ids[i : i + 1, :n], mask[i : i + 1, :n]), mask[i : i + 1, :n]).cpu().numpy()
                for i, n in enumerate(lengths.tolist())
            ]
        )
    assert cosines(together, expected).min() > 0.999
    assert cosines(together, alone).min() > 0.999


def test_qwen_gives_the_same_vectors_in_a_batch_and_alone(tmp_path: Path) -> None:
    model = save_qwen(tmp_path)
    reference = QwenEncoder.load(model, "main", "float32", CPU, 16)
    encoder = QwenEncoder.load(model, "main", "bfloat16", GPU, 16)
    grids = [[], [(4, 4)], [(8, 8), (4, 12)], [(6, 10)]]
    prompts = [encoder.prompt("Say {item}", f"word {i}" * (i + 1), of_item, 50) for i, of_item in enumerate(grids)]
    generator = torch.Generator().manual_seed(0)
    pixels = [
        [torch.randn(rows * columns, 1176, generator=generator) for rows, columns in of_item] for of_item in grids
    ]
    expected = reference.embed(prompts, [patches for of_item in pixels for patches in of_item], "last_token")
    pixels = [[patches.bfloat16() for patches in of_item] for of_item in pixels]
    together = encoder.embed(prompts, [patches for of_item in pixels for patches in of_item], "last_token")
    alone = np.concatenate(
        [encoder.embed([prompt], patches, "last_token") for prompt, patches in zip(prompts, pixels, strict=True)]
    )
    assert cosines(together, expected).min() > 0.99
    assert cosines(together, alone).min() > 0.99
