"""Run the network of Qwen2.5-VL (Bai et al. 2025) on items that are packed on one axis, end to end, without padding.

The network is that of `transformers`, with its attentions replaced and its norms and gates fused (fused.py). Each item
attends to itself alone: causally in the language model, within windows or whole images in the vision tower. On a GPU
the attention is PyTorch's variable-length flash attention; on a CPU one sequence is computed after the other.

Shape legend: n items or sequences, T tokens of all items on the packed axis, P patches of all images, H heads, D head
width, d width of the model, S tokens or patches of one sequence.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionPatchEmbed,
    Qwen2_5_VLMLP,
    Qwen2_5_VLRMSNorm,
    Qwen2MLP,
)
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from pipeline.embed.batches import send_to_device
from pipeline.embed.fused import fused, rms_norm, rotate, silu_times

Grid = tuple[int, int]  # rows and columns of an image's patches


class PackedQwen(nn.Module):
    """A `Qwen2_5_VLModel` that reads packed items: end to end on one axis, without padding."""

    def __init__(self, model: Any):
        super().__init__()
        if model.language_model.has_sliding_layers:
            raise ValueError("it attends within a sliding window, which is not supported")
        if {model.config.text_config.hidden_act, model.config.vision_config.hidden_act} != {"silu"}:
            raise ValueError("its feed-forward is not the published one (silu)")
        self.model = model
        self.dtype = model.dtype

        # Blocks of the vision tower attend within windows of 112 x 112 pixels, which are 8 x 8 = 64 patches; those in
        # fullatt_block_indexes attend within whole images (0).
        tower = model.visual
        for i, block in enumerate(tower.blocks):
            whole = i in tower.fullatt_block_indexes
            block.attn = _VisionAttention(block.attn, 0 if whole else (tower.window_size // tower.patch_size) ** 2)
        for layer in model.language_model.layers:
            layer.self_attn = _TextAttention(layer.self_attn)

        # Norms, feed-forwards and the patch embedding are exchanged wherever they are.
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
        """Return the last hidden states, [T, d].

        Args:
            positions_3T: see `QwenEncoder.positions`.
            lengths: tokens of each item.
            patches: patches of all images, [P, numbers of a patch]; None if no item has an image.
            grids: rows and columns of each image's patches.
            image_token: the token id that stands for a merged patch.
        """
        # The states of the image tokens come from the vision tower, in their order, those of the text from the table.
        h_Td = self.model.language_model.embed_tokens(ids_T)
        if patches is not None:
            merged_Td = self.model.visual(patches, **self._windows(grids, ids_T.device)).pooler_output
            h_Td = h_Td.masked_scatter((ids_T == image_token)[:, None], merged_Td)

        # lengths 5, 3 -> starts 0, 5, 8
        starts = send_to_device(F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(), ids_T.device)
        # `transformers` takes a mapping as finished masks and builds none; packed attention needs no mask.
        hidden_1Td: Tensor = self.model.language_model(
            inputs_embeds=h_Td[None],
            position_ids=positions_3T[:, None],
            attention_mask={"full_attention": None},
            use_cache=False,
            starts=starts,
            longest=max(lengths),
        ).last_hidden_state
        return hidden_1Td[0]

    def _windows(self, grids: Sequence[Grid], device: torch.device) -> dict[str, Any]:
        """Compute the vision tower's positions and windows on the CPU; the tower would wait for the device for them."""
        tower = self.model.visual
        grid_thw = torch.tensor([(1, *grid) for grid in grids])  # times, rows, columns: an image has one time

        # An image of 16 x 8 patches has two windows of 8 x 8: cu_seqlens 0 128, cu_window_seqlens 0 64 128.
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
    """Replace `Qwen2_5_VLVisionAttention`, which walks over images and windows one by one.

    window: patches of a window; 0: a patch attends to its whole image.
    """

    def __init__(self, original: Any, window: int):
        super().__init__()
        self.window = window
        self.heads = original.num_heads
        self.qkv = original.qkv
        self.proj = original.proj
        self.scaling = original.scaling

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        largest: int,
        **_: Any,
    ) -> Tensor:
        # [P, 3 * H * D] -> three times [P, H, D]
        q, k, v = self.qkv(hidden_states).unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k = (fused(rotate, x, *position_embeddings) for x in (q, k))
        mixed_PHD = qwen_attention(q, k, v, cu_seqlens, self.window or largest, self.scaling, causal=False)
        update_Pd: Tensor = self.proj(mixed_PHD.flatten(1))
        return update_Pd


class _TextAttention(nn.Module):
    """Replace `Qwen2_5_VLAttention`, for packed sequences."""

    def __init__(self, original: Any):
        super().__init__()
        self.q_proj = original.q_proj
        self.k_proj = original.k_proj
        self.v_proj = original.v_proj
        self.o_proj = original.o_proj
        self.width = original.head_dim
        self.scaling = original.scaling

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], starts: Tensor, longest: int, **_: Any
    ) -> tuple[Tensor, None]:
        # [1, T, d] -> [T, H, D], with fewer heads for keys and values than for queries
        q, k, v = (
            project(hidden_states[0]).unflatten(1, (-1, self.width))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = position_embeddings
        q, k = (fused(rotate, x, cos[0], sin[0]) for x in (q, k))
        mixed_THD = qwen_attention(q, k, v, starts, longest, self.scaling, causal=True)
        return self.o_proj(mixed_THD.flatten(1))[None], None


class _Norm(nn.Module):
    """Replace `Qwen2_5_VLRMSNorm`."""

    def __init__(self, original: Any):
        super().__init__()
        self.weight = original.weight
        self.eps = original.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        return fused(rms_norm, hidden_states.flatten(0, -2), self.weight, self.eps).view(hidden_states.shape)


class _FeedForward(nn.Module):
    """Replace `Qwen2MLP` and `Qwen2_5_VLMLP`."""

    def __init__(self, original: Any):
        super().__init__()
        self.gate_proj = original.gate_proj
        self.up_proj = original.up_proj
        self.down_proj = original.down_proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.flatten(0, -2)
        gated = fused(silu_times, self.gate_proj(rows), self.up_proj(rows))
        update: Tensor = self.down_proj(gated)
        return update.view(hidden_states.shape)


class _PatchEmbed(nn.Module):
    """Replace `Qwen2_5_VisionPatchEmbed`, a convolution that sees each patch once, by a matrix product."""

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
    """Attend within each of n packed sequences, [T, H, D].

    Args:
        q_THD: queries of all sequences.
        k_THD: keys, with as many heads as q_THD, or with fewer heads that several query heads share.
        v_THD: values, with the heads of k_THD.
        starts: int32 [n + 1]; sequence i is [starts[i], starts[i + 1]) on the packed axis.
        longest: the length of the longest sequence, or more.
        scale: factor of the scores.
        causal: whether a token attends only to itself and the tokens before it.
    """
    # 28 query heads and 4 key heads: each key head is repeated for the 7 query heads that share it
    sharing = q_THD.shape[1] // k_THD.shape[1]
    if sharing > 1:
        k_THD, v_THD = k_THD.repeat_interleave(sharing, 1), v_THD.repeat_interleave(sharing, 1)

    if q_THD.is_cuda and q_THD.dtype != torch.float32:  # flash attention knows half precision only
        from torch.nn.attention.varlen import varlen_attn

        return cast(  # it returns a tuple only if asked for more than the output
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

    # starts 0, 5, 8: sequence 0 is [0, 5), sequence 1 is [5, 8)
    mixed_THD = torch.empty_like(q_THD)
    for start, stop in pairwise(starts.tolist()):
        q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (q_THD, k_THD, v_THD))
        mixed_1HSD = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        mixed_THD[start:stop] = mixed_1HSD[0].transpose(0, 1)
    return mixed_THD
