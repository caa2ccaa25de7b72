"""The tiny models of this folder, saved once for all its files, and a dataset folder with pictures.

The fixtures import transformers, because half of the test files do not need it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pipeline.embed.qwen import QwenEncoder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a T5 and of a BERT."""
    from tiny_text import save_model

    return {kind: save_model(tmp_path_factory.mktemp(kind), kind) for kind in ("t5", "bert")}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a Qwen2.5-VL."""
    from tiny_qwen import save_qwen

    return save_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def encoder(model: str) -> "QwenEncoder":
    """The Qwen2.5-VL of `model`, loaded."""
    import torch

    from pipeline.embed.qwen import QwenEncoder

    return QwenEncoder.load(model, "main", "float32", torch.device("cpu"), image_tokens=16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset folder with four pictures."""
    from PIL import Image
    from qwen_items import SIZES

    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, (width, height) in SIZES.items():
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        coarse.resize((width, height)).save(tmp_path / f"data/{name}.png")
    return tmp_path / "data"
