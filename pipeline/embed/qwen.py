"""Run Qwen2.5-VL (Bai et al. 2025) as an encoder: one vector from the images and the text of an item.

This file makes an item's prompt and pools the last hidden states; packed_qwen.py runs the network. The language-model
head is never loaded.

The prompt is the model's chat format, and the PIL image processor prepares the images. Both give what the full
processor makes of a chat (tests compare them), but nothing here needs torchvision. An item's text cannot open a new
turn, because special tokens inside the text are broken up.

Shape legend: n items of a batch, T tokens of all items on the packed axis, d width of the model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from pipeline.embed.batches import send_to_device
from pipeline.embed.packed_qwen import Grid, PackedQwen
from pipeline.embed.weights import NOT_LOADED, load_config, load_tokenizer, load_weights, name_and_revision, not_loaded

KIND = "qwen2_5_vl"
IMAGE_TOKEN = "<|image_pad|>"
IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class Prompt:
    """An item as the model reads it.

    ids: int32 token ids, with one image token for each merged patch. grids: rows and columns of each image's patches.
    """

    ids: np.ndarray
    grids: tuple[Grid, ...]


class QwenEncoder:
    """Tokenizer, image processor and model on a device.

    Args:
        model: a `Qwen2_5_VLModel`.
        images: a `Qwen2VLImageProcessorPil`.
        image_tokens: the most tokens that one image may take.
        name: the model's name, or its folder's.
        revision: the commit of the weights, for a local folder the sha256 of its files.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        images: Any,
        device: torch.device,
        image_tokens: int,
        name: str = "",
        revision: str = "",
    ):
        self.model = PackedQwen(model).to(device).eval()
        self.tokenizer = tokenizer
        self.images = images
        self.device = device
        self.name = name
        self.revision = revision
        self.image_token = model.config.image_token_id

        # Patches of 14 x 14 pixels, merged 2 x 2: a token covers 28 x 28 pixels, 256 tokens cover 200,704 pixels.
        self.merge = images.merge_size
        self.side = images.patch_size * self.merge  # pixels of an image token
        self.max_pixels = image_tokens * self.side**2
        self.min_pixels = min(images.size["shortest_edge"], self.max_pixels)  # smaller images are enlarged

        # Matches each special token of the vocabulary: <|im_end|> or <|im_start|> or ...
        self.special = re.compile("|".join(map(re.escape, sorted(tokenizer.get_added_vocab()))))

    @classmethod
    def load(cls, model: str, revision: str, dtype: str, device: torch.device, image_tokens: int) -> "QwenEncoder":
        """Load the model by name or from a local folder.

        Raises:
            UserError: the model is not found, is no Qwen2.5-VL, or its weights are incomplete.
        """
        try:
            config = load_config(model, revision)
            if config.model_type != KIND:
                raise ValueError(f"it is a {config.model_type}, not a {KIND}")
            tokenizer = load_tokenizer(model, revision)
            if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != config.image_token_id:
                raise ValueError(f"its tokenizer has no {IMAGE_TOKEN}, or another one than the model")
            images = Qwen2VLImageProcessorPil.from_pretrained(model, revision=revision)
            return cls(
                load_weights(model, revision, config, dtype),
                tokenizer,
                images,
                device,
                image_tokens,
                *name_and_revision(model, revision, config),
            )
        except NOT_LOADED as error:
            raise not_loaded(model, "Qwen2.5-VL", error) from None

    def grid(self, width: int, height: int) -> Grid:
        """Return the rows and columns of patches of an image of that size (pixels)."""
        # 100 x 50 pixels are resized to 112 x 56, the nearest multiples of 28: 4 rows and 8 columns of patches
        height, width = smart_resize(height, width, self.side, self.min_pixels, self.max_pixels)
        return height // self.images.patch_size, width // self.images.patch_size

    def prompt(self, template: str, text: str, grids: Sequence[Grid], max_tokens: int) -> Prompt:
        """Return the chat about one item.

        Args:
            template: the user's turn, with `{item}` where the text goes.
            text: the item's text; it is cut to `max_tokens` tokens.
            grids: rows and columns of each image's patches.
        """
        question = template.replace("{item}", self.cut(self.harmless(text), max_tokens))
        # An image of 4 x 4 patches, merged 2 x 2, has 4 tokens: <|vision_start|> <|image_pad|> x 4 <|vision_end|>
        images = "".join(
            IMAGE.replace(IMAGE_TOKEN, IMAGE_TOKEN * (rows * columns // self.merge**2)) for rows, columns in grids
        )
        ids = self.tokenizer(BEFORE + images + question + AFTER, add_special_tokens=False)["input_ids"]
        return Prompt(np.array(ids, dtype=np.int32), tuple(grids))

    def harmless(self, text: str) -> str:
        """Break up special tokens in the data, so that they are ordinary text: `<|im_end|>` -> `< |im_end|>`."""
        return self.special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def cut(self, text: str, max_tokens: int) -> str:
        """Return the text up to the end of token number `max_tokens`."""
        # offsets of "red nail polish": (0, 3), (3, 8), (8, 15); with max_tokens 2 the text ends at 8
        ends = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(ends) <= max_tokens else text[: ends[max_tokens - 1][1]]

    def pixels(self, image: Image.Image) -> Tensor:
        """Prepare an image: [patches of the image, numbers of a patch] on the CPU, in the model's type."""
        size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        patches: Tensor = self.images(images=[image], size=size, return_tensors="pt")["pixel_values"]
        return patches.to(self.model.dtype)

    def embed(self, prompts: Sequence[Prompt], pixels: Sequence[Tensor], pooling: str) -> np.ndarray:
        """Return the vectors of one batch, float32 [n, d].

        Args:
            pixels: patches of all its images, in the order of the items, in any number of parts.
            pooling: `last_token` or `mean`.
        """
        return self.start(prompts, pixels, pooling).cpu().numpy()

    @torch.inference_mode()
    def start(self, prompts: Sequence[Prompt], pixels: Sequence[Tensor], pooling: str) -> Tensor:
        """Start to compute what `embed` returns, and return it on the device without waiting for it."""
        # prompts of 5 and 3 tokens, the first with one image of 4 x 4 patches -> T 8, lengths [5, 3], grids [(4, 4)]
        ids_T = torch.from_numpy(np.concatenate([prompt.ids for prompt in prompts])).long()
        positions_3T = np.concatenate([self.positions(prompt) for prompt in prompts], axis=1)
        grids = [grid for prompt in prompts for grid in prompt.grids]
        lengths = [len(prompt.ids) for prompt in prompts]

        # The patches of all images, in the order of the items; the network puts them where the image tokens are.
        patches = torch.cat([send_to_device(part, self.device) for part in pixels]) if len(pixels) else None
        hidden_Td = self.model(
            send_to_device(ids_T, self.device),
            send_to_device(torch.from_numpy(positions_3T), self.device),
            lengths,
            patches,
            grids,
            self.image_token,
        )
        return pool(hidden_Td, lengths, pooling)

    def positions(self, prompt: Prompt) -> np.ndarray:
        """Return time, row and column of each token, int64 [3, length], for the rotary position embedding.

        Source: section 2.1.3 of the Qwen2-VL report. A text token advances all three. The tokens of an image have one
        time and their row and column in the image; the token after the image begins after its longer side.
        """
        # Two text tokens, an image of 4 x 4 patches merged to 2 x 2 tokens, one text token:
        # time 0 1 2 2 2 2 4, row 0 1 2 2 3 3 4, column 0 1 2 3 2 3 4
        positions = np.empty((3, len(prompt.ids)), dtype=np.int64)
        grids = iter(prompt.grids)
        now = 0  # the position that comes next in time, row and column
        token = 0
        while token < len(prompt.ids):
            if prompt.ids[token] != self.image_token:
                positions[:, token] = now
                now += 1
                token += 1
                continue
            rows, columns = (side // self.merge for side in next(grids))
            inside = slice(token, token + rows * columns)
            # 2 x 2 tokens: times 0 0 0 0, rows 0 0 1 1, columns 0 1 0 1
            positions[:, inside] = now + np.stack(
                [np.zeros(rows * columns, np.int64), *np.divmod(np.arange(rows * columns), columns)]
            )
            now += max(rows, columns)
            token = inside.stop
        return positions


def pool(hidden_Td: Tensor, lengths: Sequence[int], pooling: str) -> Tensor:
    """Return float32 [n, d]: the last token's state of each sequence, or the mean over prompt, text and images."""
    # lengths 5, 3: rows 0 to 4 and 5 to 7; `last_token` takes rows 4 and 7
    parts = torch.split(hidden_Td, list(lengths))
    return torch.stack([(part[-1] if pooling == "last_token" else part.float().mean(0)).float() for part in parts])
