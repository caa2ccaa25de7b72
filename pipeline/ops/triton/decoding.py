"""Run what beam search repeats as a handful of Triton kernels per layer and level.

A recorded search (cuda_graphs.py) costs some microseconds per kernel, however little the kernel does: for a small batch
the number of kernels is the price. So the norm goes into the product after it and the residual into the product before
it; the cached keys and values of beams stay where they were written, and are found by the rows of a beam's ancestors.
decoding_kernels.py has these kernels; decoding/beam_kernels.py has the two that choose a level's beams.

Shape legend: R rows (windows x beams), W windows, H heads, D head width, d model width, J decoder positions so far, n
outputs of a product; T queries and S keys of all windows.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pipeline.ops.compiling import launch
from pipeline.ops.layout import Spans
from pipeline.ops.triton.decoding_kernels import ancestors_kernel, linear_kernel, window_kernel
from pipeline.ops.triton.precision import PRECISION

# Tiles of a product that measured best on an H200: rows, columns and inner columns of a tile, and warps
TILES = ((128, 128, 64, 8), (64, 64, 64, 4), (16, 32, 128, 4))
ENOUGH_TILES = 64  # to occupy the chip


def linear(
    x_Rd: Tensor,
    weight_nd: Tensor,
    dtype: torch.dtype,
    *,
    norm_d: Tensor | None = None,
    relu: bool = False,
    residual_Rn: Tensor | None = None,
) -> Tensor:
    """Compute relu(rms_norm(x) @ weight^T) + residual, each part where asked for, in one kernel.

    Args:
        dtype: type of the product's factors, float32 or bfloat16, and of the result where there is no residual; the
            result of a sum has the type of the residual.
    """
    rows, width = x_Rd.shape
    outputs = len(weight_nd)
    exact = dtype == torch.float32
    stages = _stages(x_Rd.device)
    bm, bn, bk, warps = _tile(rows, outputs)
    if bm == TILES[0][0]:  # many rows: what each tile would do anew is done here once
        weight_nd = weight_nd.to(dtype)
        if exact and norm_d is not None:
            x_Rd = F.rms_norm(x_Rd, (width,), norm_d, 1e-6)
            norm_d = None
        elif norm_d is not None and stages == 3:
            bn *= 2  # each tile norms its rows anew, so fewer and wider tiles
    if exact:  # float32 takes twice the memory
        bn = min(bn, 64)
        bk //= 2
    out = torch.empty(rows, outputs, device=x_Rd.device, dtype=dtype if residual_Rn is None else residual_Rn.dtype)
    launch(
        linear_kernel,
        (triton.cdiv(rows, bm), triton.cdiv(outputs, bn)),
        x_Rd.contiguous(),
        weight_nd,
        out if norm_d is None else norm_d,
        out if residual_Rn is None else residual_Rn,
        out,
        rows,
        outputs,
        width,
        1e-6,
        written=[out],
        NORM=norm_d is not None,
        RELU=relu,
        RESIDUAL=residual_Rn is not None,
        TYPE=tl.float32 if exact else tl.bfloat16,
        PRECISION=PRECISION,
        BM=bm,
        BN=bn,
        BK=bk,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def _tile(rows: int, outputs: int) -> tuple[int, int, int, int]:
    """Return the largest tile of which there are enough to keep the chip busy, else the smallest."""
    for tile in TILES[:-1]:
        if triton.cdiv(rows, tile[0]) * triton.cdiv(outputs, tile[1]) > ENOUGH_TILES:
            return tile
    return TILES[-1]


@cache
def _stages(device: torch.device) -> int:
    """Return how many tiles of its factors a program holds at once: three where shared memory suffices (Hopper)."""
    if device.type != "cuda":  # Triton's interpreter
        return 3
    return 3 if torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor > 200_000 else 2


def attend_to_ancestors(
    q_RHD: Tensor, past: Sequence[tuple[Tensor, Tensor]], rows_RJ: Tensor, bias_HJ: Tensor
) -> Tensor:
    """Compute `ops.attention.attend_to_ancestors`."""
    R, H, D = q_RHD.shape
    out = torch.empty(R, H, D, device=q_RHD.device, dtype=q_RHD.dtype)
    launch(
        ancestors_kernel,
        (triton.cdiv(R, 16), H),
        q_RHD,
        tuple(k for k, _ in past),
        tuple(v for _, v in past),
        rows_RJ,
        bias_HJ,
        out,
        R,
        H,
        q_RHD.stride(0),
        bias_HJ.stride(0),
        bias_HJ.stride(1),
        written=[out],
        J=len(past),
        BM=16,
        D=D,
        BD=triton.next_power_of_2(D),
        num_warps=4,
    )
    return out


def attend(
    q_THD: Tensor,
    k_SHD: Tensor,
    v_SHD: Tensor,
    spans: Spans,
    bias: Tensor | None = None,
    causal: bool = False,
    equal: bool = False,
) -> Tensor:
    """Compute `ops.triton.attention.triton_attention` forward only, all lengths in one launch.

    Args:
        bias: [H, distances], as in `triton_attention`.
        equal: `spans` are those of the keys; each window has T / W queries.
    """
    T, H, D = q_THD.shape
    windows = len(spans.lengths_k)
    queries = T // windows if equal else spans.longest_q
    rows = min(64, max(16, triton.next_power_of_2(queries)))
    # Where queries are not equal, rows of no window may follow: they must be zero, not what memory held before.
    out = (torch.empty if equal else torch.zeros)(T, H, D, device=q_THD.device, dtype=v_SHD.dtype)
    launch(
        window_kernel,
        (windows, H, triton.cdiv(queries, rows)),
        q_THD,
        k_SHD,
        v_SHD,
        out,
        out if bias is None else bias,
        spans.starts_q,
        spans.starts_k,
        spans.lengths_k,
        q_THD.stride(0),
        k_SHD.stride(0),
        v_SHD.stride(0),
        queries,
        H,
        1 if bias is None else bias.shape[1],
        written=[out],
        EQUAL=equal,
        HAS_BIAS=bias is not None,
        CAUSAL=causal,
        PRECISION=PRECISION,
        BM=rows,
        BN=32,
        D=D,
        BD=max(16, triton.next_power_of_2(D)),
        num_warps=4,
        num_stages=2,
    )
    return out
