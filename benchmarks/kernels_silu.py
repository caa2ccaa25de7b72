"""HSTU's Triton attention against its float64 reference, on a GPU: largest relative error per dtype, kind and length.

    python benchmarks/kernels_silu.py             # prints the table; exit code 1 when an error is above its bound

An error is ||ours - reference|| / ||reference|| over a whole tensor: output, gradients of queries, keys, values and of
both biases. Inputs are random; sequence lengths within one case are ragged up to the length named, and tokens that
belong to no sequence stand at the end. `tests/ops/test_pointwise_triton.py` runs the same cases where there
is a GPU.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ops.layout import Layout
from pipeline.ops.pointwise import TIME_BUCKETS, Kind, Times
from pipeline.ops.pointwise_attention import pointwise_attention

BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2}
SPARE = 5  # tokens of no sequence


@dataclass(frozen=True, kw_only=True)
class SiluCase:
    """A case is a batch of sequences of up to `longest` tokens; `pad_to`: slots of each.

    compiled: as in a training step: by torch.compile, with the position bias in `dtype`, as autocast leaves it.
    """

    kind: Kind
    dtype: torch.dtype
    longest: int
    timed: bool = True
    width: int = 32
    pad_to: int = 0
    compiled: bool = False

    def __str__(self) -> str:
        what = "compiled" if self.compiled else "padded" if self.pad_to else ""
        return (
            f"{self.kind:8} {'timed' if self.timed else '':5} {what:8} "
            f"{str(self.dtype)[6:]:9} {self.longest:4} x {self.width}"
        )


def silu_cases() -> Iterator[SiluCase]:
    """Every class of lengths, both kinds of weights, with times and without."""
    for dtype in (torch.float32, torch.bfloat16):
        for longest in (1, 16, 30, 64, 123, 150, 512):
            yield SiluCase(kind="silu", dtype=dtype, longest=longest)
        for longest in (16, 64, 150):
            yield SiluCase(kind="silu", dtype=dtype, longest=longest, timed=False)
            yield SiluCase(kind="softplus", dtype=dtype, longest=longest, timed=False)
        yield SiluCase(kind="silu", dtype=dtype, longest=40, pad_to=100)
        yield SiluCase(kind="silu", dtype=dtype, longest=60, width=16)
        yield SiluCase(kind="softplus", dtype=dtype, longest=60, width=64, timed=False)
        yield SiluCase(kind="silu", dtype=dtype, longest=60, width=64, compiled=True)


def silu_errors(
    case: SiluCase, heads: int = 4, sequences: int = 40, seed: int = 0, device: str = "cuda"
) -> dict[str, float]:
    """Relative error of each result of one case."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, case.longest + 1, (sequences,), generator=generator).sort().values
    lengths[-1] = case.longest
    sizes = torch.full_like(lengths, case.pad_to) if case.pad_to else lengths
    starts, total = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)), int(sizes.sum()) + SPARE
    longest = case.pad_to or case.longest
    real = torch.zeros(total, dtype=torch.bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=False):
        real[start : start + length] = True

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.7).to(device, case.dtype).requires_grad_()

    q, k, v = (normal(total, heads, case.width) for _ in range(3))
    bias = (
        torch.randn(heads, 2 * longest - 1, generator=generator)
        .to(device, case.dtype if case.compiled else torch.float32)
        .requires_grad_()
    )
    table = torch.randn(TIME_BUCKETS, heads, generator=generator).to(device).requires_grad_()
    time_bias = table if case.timed else None
    # Whole minutes of two weeks: of no such time would a GPU's less exact logarithm choose another bucket.
    times = Times(*(torch.randint(20_000, (total,), generator=generator) * 60 for _ in range(2)))
    on_device = Times(times.asked_T.to(device), times.happened_T.to(device)) if case.timed else None
    lengths_W = lengths.to(device)
    layout = Layout.padded(lengths_W, longest) if case.pad_to else Layout.packed(lengths_W, longest)
    attend = torch.compile(pointwise_attention, dynamic=True) if case.compiled else pointwise_attention
    out = attend(q, k, v, layout.timed(on_device), bias, time_bias, case.kind)
    wanted = [x for x in (q, k, v, bias, time_bias) if x is not None]
    grad = torch.randn(out.shape, generator=generator).mul_(real[:, None, None]).to(out)
    ours = [out * real[:, None, None].to(device), *torch.autograd.grad(out, wanted, grad)]

    exact = [x.detach().double().cpu().requires_grad_() for x in wanted]
    packed = Times(times.asked_T[real], times.happened_T[real]) if case.timed else None
    expected_out = pointwise_attention(
        exact[0][real],
        exact[1][real],
        exact[2][real],
        Layout.packed(lengths, longest).timed(packed),
        _square(exact[3], longest),
        exact[4] if case.timed else None,
        case.kind,
    )
    expected = [
        torch.zeros(out.shape, dtype=torch.float64).masked_scatter(real[:, None, None], expected_out.detach()),
        *torch.autograd.grad(expected_out, exact, grad[real.to(device)].double().cpu()),
    ]
    names = ("output", "d_query", "d_key", "d_value", "d_bias", "d_time")
    return {
        name: float((a.detach().double().cpu() - b).norm() / b.norm())
        for name, a, b in zip(names, ours, expected, strict=False)
    }


def _square(bias_HR: Tensor, longest: int) -> Tensor:
    """Bias by distance -> [H, Q, K]."""
    position = torch.arange(longest)
    return bias_HR[:, position - position[:, None] + longest - 1]


def main() -> int:
    """Print one line per case. Returns the exit code."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = count = 0
    cases = sorted(silu_cases(), key=lambda case: case.compiled)
    with ThreadPoolExecutor(12) as pool:  # most of the time goes into compiling kernels
        results = list(pool.map(silu_errors, (case for case in cases if not case.compiled)))
    results += [silu_errors(case) for case in cases if case.compiled]  # one after another: torch.compile wants it
    for case, found in zip(cases, results, strict=True):
        bad = not all(error <= BOUNDS[case.dtype] for error in found.values())  # nor may one be NaN
        failed, count = failed + bad, count + 1
        print(
            f"{case}  "
            + "  ".join(f"{name} {value:.1e}" for name, value in found.items())
            + ("  ABOVE THE BOUND" if bad else "")
        )
    print(f"{count} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
