"""Qwen2.5-VL (Bai et al. 2025) as an encoder: images and text of an item in, one vector out.

The network is `transformers`' own, with its attentions replaced and its norms and gates fused (fused.py): items are
packed one after another on one axis, without padding, and each attends within itself - causally in the language model,
within windows or whole images in the vision tower. On a GPU that is PyTorch's variable-length flash attention; on a CPU
one sequence after the other. The language-model head is never loaded.

The prompt is the model's chat format, and images are prepared by the PIL image processor: both are what the full
processor makes of a chat (tests compare them), but nothing here needs torchvision. An item's text cannot open a new
turn: special tokens inside it are broken up.

Shape legend: n items or sequences, T tokens of all items, P patches of all images, H heads, D head width, d width.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLMLP,
    Qwen2_5_VLRMSNorm,
    Qwen2MLP,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from pipeline.embed.batches import send_to_device
from pipeline.embed.fused import fused, rms_norm, rotate, silu_times
from pipeline.embed.weights import NOT_LOADED, load_config, load_tokenizer, load_weights, name_and_revision, not_loaded

KIND = "qwen2_5_vl"
IMAGE, IMAGE_TOKEN = "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"
BEFORE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
AFTER = "<|im_end|>\n<|im_start|>assistant\n"

Grid = tuple[int, int]  # rows and columns of an image's patches


@dataclass(frozen=True)
class Prompt:
    """An item for the model. ids: int32, an image token for each merged patch. grids: of each image."""

    ids: np.ndarray
    grids: tuple[Grid, ...]


class QwenEncoder:
    """Tokenizer, image processor and model on a device.

    Args:
        model: a `Qwen2_5_VLModel`.
        images: a `Qwen2VLImageProcessorPil`.
        image_tokens: of one image at most.
        name, revision: as those of a TextEncoder.
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
        self.tokenizer, self.images, self.device, self.name, self.revision = tokenizer, images, device, name, revision
        self.image_token = model.config.image_token_id
        self.merge = images.merge_size
        self.side = images.patch_size * self.merge  # pixels of an image token
        self.max_pixels = image_tokens * self.side**2
        self.min_pixels = min(images.size["shortest_edge"], self.max_pixels)  # smaller images are enlarged
        self.special = re.compile("|".join(map(re.escape, sorted(tokenizer.get_added_vocab()))))

    @classmethod
    def load(cls, model: str, revision: str, dtype: str, device: torch.device, image_tokens: int) -> "QwenEncoder":
        """By name or from a local folder.

        Raises:
            UserError: the model is not there, is no Qwen2.5-VL, or its weights are incomplete.
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
        """Rows and columns of patches of an image of that size."""
        height, width = smart_resize(height, width, self.side, self.min_pixels, self.max_pixels)
        return height // self.images.patch_size, width // self.images.patch_size

    def prompt(self, template: str, text: str, grids: Sequence[Grid], max_tokens: int) -> Prompt:
        """The chat of one item.

        Args:
            template: of the user's turn, with `{item}` where the text goes.
            text: of the item; cut to `max_tokens` tokens.
        """
        question = template.replace("{item}", self.cut(self.harmless(text), max_tokens))
        images = "".join(
            IMAGE.replace(IMAGE_TOKEN, IMAGE_TOKEN * (rows * columns // self.merge**2)) for rows, columns in grids
        )
        ids = self.tokenizer(BEFORE + images + question + AFTER, add_special_tokens=False)["input_ids"]
        return Prompt(np.array(ids, dtype=np.int32), tuple(grids))

    def harmless(self, text: str) -> str:
        """Special tokens in the data become ordinary text."""
        return self.special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def cut(self, text: str, max_tokens: int) -> str:
        """The text up to the end of its last token that is allowed."""
        ends = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return text if len(ends) <= max_tokens else text[: ends[max_tokens - 1][1]]

    def pixels(self, image: Image.Image) -> Tensor:
        """[patches of the image, numbers of a patch] on the CPU, in the model's type."""
        size = {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels}
        return self.images(images=[image], size=size, return_tensors="pt")["pixel_values"].to(self.model.dtype)

    def embed(self, prompts: Sequence[Prompt], pixels: Sequence[Tensor], pooling: str) -> np.ndarray:
        """float32 [n, d] of one batch. pixels: of all its images, in the order of the items, in any number of parts."""
        return self.start(prompts, pixels, pooling).cpu().numpy()

    @torch.inference_mode()
    def start(self, prompts: Sequence[Prompt], pixels: Sequence[Tensor], pooling: str) -> Tensor:
        """As `embed`, on the device and without waiting for it."""
        ids_T = torch.from_numpy(np.concatenate([prompt.ids for prompt in prompts])).long()
        positions_3T = np.concatenate([self.positions(prompt) for prompt in prompts], axis=1)
        grids = [grid for prompt in prompts for grid in prompt.grids]
        lengths = [len(prompt.ids) for prompt in prompts]
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
        """int64 [3, length]: time, row and column of each token, for the rotary position embedding (section 2.1.3 of
        the Qwen2-VL report). Text advances all three; an image stands still in time, and what follows it begins after
        its longer side."""
        positions, grids = np.empty((3, len(prompt.ids)), dtype=np.int64), iter(prompt.grids)
        now = token = 0
        while token < len(prompt.ids):
            if prompt.ids[token] != self.image_token:
                positions[:, token] = now
                now, token = now + 1, token + 1
                continue
            rows, columns = (side // self.merge for side in next(grids))
            inside = slice(token, token + rows * columns)
            positions[:, inside] = now + np.stack(
                [np.zeros(rows * columns, np.int64), *np.divmod(np.arange(rows * columns), columns)]
            )
            now, token = now + max(rows, columns), inside.stop
        return positions


def pool(hidden_Td: Tensor, lengths: Sequence[int], pooling: str) -> Tensor:
    """float32 [n, d]: of each sequence the last token's state, or the mean of all, prompt and images included."""
    parts = hidden_Td.split(list(lengths))
    return torch.stack([(part[-1] if pooling == "last_token" else part.float().mean(0)).float() for part in parts])


class PackedQwen(nn.Module):
    """A `Qwen2_5_VLModel` over items that stand one after another, without padding."""

    def __init__(self, model: Any):
        super().__init__()
        if model.language_model.has_sliding_layers:
            raise ValueError("it attends within a sliding window, which is not supported")
        if {model.config.text_config.hidden_act, model.config.vision_config.hidden_act} != {"silu"}:
            raise ValueError("its feed-forward is not the published one (silu)")
        self.model, self.dtype = model, model.dtype
        tower = model.visual
        for i, block in enumerate(tower.blocks):
            whole = i in tower.fullatt_block_indexes
            block.attn = _VisionAttention(block.attn, 0 if whole else (tower.window_size // tower.patch_size) ** 2)
        for layer in model.language_model.layers:
            layer.self_attn = _TextAttention(layer.self_attn)
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in REPLACED:
                    setattr(parent, name, REPLACED[type(child)](child))

    def forward(
        self,
        ids_T: Tensor,
        positions_3T: Tensor,
        lengths: Sequence[int],
        patches: Tensor | None,
        grids: Sequence[Grid],
        image_token: int,
    ) -> Tensor:
        """[T, d]: the last hidden states.

        Args:
            positions_3T: positions, see `QwenEncoder.positions`.
            lengths: tokens of each item.
            patches: [P, numbers of a patch] of all images; None: there is none.
            grids: rows and columns of each image's patches.
        """
        h_Td = self.model.language_model.embed_tokens(ids_T)
        if patches is not None:
            merged_Td = self.model.visual(patches, **self._windows(grids, ids_T.device)).pooler_output
            h_Td = h_Td.masked_scatter((ids_T == image_token)[:, None], merged_Td)
        starts = send_to_device(F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(), ids_T.device)
        # A mapping is taken as finished masks: packed attention needs none.
        return self.model.language_model(
            inputs_embeds=h_Td[None],
            position_ids=positions_3T[:, None],
            attention_mask={"full_attention": None},
            use_cache=False,
            starts=starts,
            longest=max(lengths),
        ).last_hidden_state[0]

    def _windows(self, grids: Sequence[Grid], device: torch.device) -> dict[str, Any]:
        """What the vision tower would else work out on the device, and wait for."""
        tower, grid_thw = self.model.visual, torch.tensor([(1, *grid) for grid in grids])
        window_index, cu_window_seqlens = get_vision_window_index(
            grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size
        )
        tensors = {
            "position_ids": get_vision_position_ids(grid_thw, tower.spatial_merge_size),
            "cu_seqlens": get_vision_cu_seqlens(grid_thw),
            "window_index": window_index,
            "cu_window_seqlens": cu_window_seqlens,
        }
        return {name: send_to_device(tensor, device) for name, tensor in tensors.items()} | {
            "grid_thw": grid_thw,
            "largest": max(rows * columns for rows, columns in grids),
        }


class _VisionAttention(nn.Module):
    """Stands in for `Qwen2_5_VLVisionAttention`, which walks over images and windows one by one.

    window: patches of a window; 0: a patch attends to its whole image.
    """

    def __init__(self, original: Any, window: int):
        super().__init__()
        self.window = window
        self.heads, self.qkv, self.proj, self.scaling = (
            original.num_heads,
            original.qkv,
            original.proj,
            original.scaling,
        )

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        largest: int,
        **_: Any,
    ) -> Tensor:
        q, k, v = self.qkv(hidden_states).unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k = (fused(rotate, x, *position_embeddings) for x in (q, k))
        mixed_PHD = qwen_attention(q, k, v, cu_seqlens, self.window or largest, self.scaling, causal=False)
        return self.proj(mixed_PHD.flatten(1))


class _TextAttention(nn.Module):
    """Stands in for `Qwen2_5_VLAttention`, over packed sequences."""

    def __init__(self, original: Any):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            original.q_proj,
            original.k_proj,
            original.v_proj,
            original.o_proj,
        )
        self.width, self.scaling = original.head_dim, original.scaling

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], starts: Tensor, longest: int, **_: Any
    ) -> tuple[Tensor, None]:
        q, k, v = (
            project(hidden_states[0]).unflatten(1, (-1, self.width))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = position_embeddings
        q, k = (fused(rotate, x, cos[0], sin[0]) for x in (q, k))
        mixed_THD = qwen_attention(q, k, v, starts, longest, self.scaling, causal=True)
        return self.o_proj(mixed_THD.flatten(1))[None], None


class _Norm(nn.Module):
    """Stands in for `Qwen2_5_VLRMSNorm`."""

    def __init__(self, original: Any):
        super().__init__()
        self.weight, self.eps = original.weight, original.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        return fused(rms_norm, hidden_states.flatten(0, -2), self.weight, self.eps).view(hidden_states.shape)


class _FeedForward(nn.Module):
    """Stands in for `Qwen2MLP` and `Qwen2_5_VLMLP`."""

    def __init__(self, original: Any):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = original.gate_proj, original.up_proj, original.down_proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.flatten(0, -2)
        gated = fused(silu_times, self.gate_proj(rows), self.up_proj(rows))
        return self.down_proj(gated).view(hidden_states.shape)


class _PatchEmbed(nn.Module):
    """Stands in for `Qwen2_5_VisionPatchEmbed`, a convolution that sees each patch once: a matrix product."""

    def __init__(self, original: Any):
        super().__init__()
        self.proj = original.proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, self.proj.weight.flatten(1))


REPLACED: dict[type, type[nn.Module]] = {
    Qwen2_5_VLRMSNorm: _Norm,
    Qwen2MLP: _FeedForward,
    Qwen2_5_VLMLP: _FeedForward,
    Qwen2_5_VisionPatchEmbed: _PatchEmbed,
}


def qwen_attention(
    q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, starts: Tensor, longest: int, scale: float, causal: bool
) -> Tensor:
    """[T, H, D]: attention within each of n sequences that stand one after another.

    Args:
        k_THD, v_THD: with as many heads, or with fewer that several query heads share.
        starts: int32 [n + 1]: sequence i owns [starts[i], starts[i + 1]).
        longest: at least the length of the longest one.
    """
    sharing = q_THD.shape[1] // k_THD.shape[1]
    if sharing > 1:
        k_THD, v_THD = k_THD.repeat_interleave(sharing, 1), v_THD.repeat_interleave(sharing, 1)
    if q_THD.is_cuda and q_THD.dtype != torch.float32:  # flash attention knows half precision only
        from torch.nn.attention.varlen import varlen_attn

        return cast(
            Tensor,
            varlen_attn(
                q_THD,
                k_THD,
                v_THD,
                starts,
                starts,
                longest,
                longest,
                scale=scale,
                window_size=(-1, 0) if causal else (-1, -1),
            ),
        )
    mixed_THD = torch.empty_like(q_THD)
    for start, stop in pairwise(starts.tolist()):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
        mixed_1HLD = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        mixed_THD[start:stop] = mixed_1HLD[0].transpose(0, 1)
    return mixed_THD
