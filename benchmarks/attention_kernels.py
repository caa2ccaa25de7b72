"""The Triton attention against the float64 reference, on a GPU: largest relative error per dtype, kind and length.

    python benchmarks/attention_kernels.py           # prints the table; exit code 1 when an error is above its bound

An error is ||ours - reference|| / ||reference|| over a whole tensor: output, gradients of queries, keys, values and
bias, attention mass per key. Inputs are random; sequence lengths within one case are ragged up to the length named.
`tests/ops/test_attention_triton.py` runs the same cases where there is a GPU.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.ops.layout import Layout, Mass
from pipeline.ops.reference import reference_attention
from pipeline.ops.triton.attention import triton_attention

BOUNDS = {torch.float32: 2e-5, torch.bfloat16: 1.2e-2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case is one batch for attention.

    longest: keys of a sequence, at most. queries: 0 in self-attention, where each key has a query.
    """

    kind: str
    dtype: torch.dtype
    longest: int
    queries: int = 0
    causal: bool = False
    bias: bool = True
    width: int = 64
    pad_to: int = 0
    reach: int = 0  # positions before pruning, of which each sequence keeps some; 0: nothing was pruned

    def __str__(self) -> str:
        return f"{self.kind:9} {str(self.dtype)[6:]:9} {self.longest:4} x {self.width}"


def cases() -> Iterator[Case]:
    """Every class of lengths and every use the backbone makes of it."""
    for dtype in (torch.float32, torch.bfloat16):
        for longest in (4, 16, 32, 64, 128, 150, 512):
            yield Case(kind="self", dtype=dtype, longest=longest)
        for longest in (16, 64, 150):
            yield Case(kind="causal", dtype=dtype, longest=longest, causal=True)
            yield Case(kind="cross", dtype=dtype, longest=longest, queries=4, bias=False)
            yield Case(kind="beams", dtype=dtype, longest=longest, queries=50, bias=False)
        yield Case(kind="padded", dtype=dtype, longest=40, pad_to=100)
        yield Case(kind="pruned", dtype=dtype, longest=16, reach=40)
        yield Case(kind="pruned", dtype=dtype, longest=60, reach=150)
        yield Case(kind="pruned", dtype=dtype, longest=200, reach=500)
        yield Case(kind="narrow", dtype=dtype, longest=60, width=16)


def errors(case: Case, heads: int = 3, sequences: int = 40, seed: int = 0) -> dict[str, float]:
    """Relative error of each result of one case."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, case.longest + 1, (sequences,), generator=generator).sort().values
    lengths[-1] = case.longest
    sizes = torch.full_like(lengths, case.pad_to) if case.pad_to else lengths
    queries = torch.full_like(lengths, case.queries) if case.queries else sizes
    longest = case.pad_to or case.longest
    positions = _kept_positions(lengths, case.reach, generator) if case.reach else None

    def normal(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.4).to("cuda", case.dtype).requires_grad_()

    q, k, v = (
        normal(int(queries.sum()), heads, case.width),
        *(normal(int(sizes.sum()), heads, case.width) for _ in range(2)),
    )
    reach = case.reach or longest
    bias = torch.randn(heads, 2 * reach - 1, generator=generator).cuda().requires_grad_() if case.bias else None
    if case.causal:
        qkv: tuple[Tensor, ...] = q, k, v
    else:
        qkv = (q, torch.stack([k, v], 1)) if case.queries else (torch.stack([q, k, v], 1),)
    spans = _layout(case, lengths.cuda(), None if positions is None else positions.cuda()).spans
    assert spans is not None
    out, mass = triton_attention(qkv, spans, bias, causal=case.causal, mass=Mass(padded_queries=True))
    wanted = [x for x in (q, k, v, bias) if x is not None]
    grad = torch.randn(out.shape, generator=generator).to(out)
    ours = [out, *torch.autograd.grad(out, wanted, grad)]
    exact = [x.detach().double().cpu().requires_grad_() for x in wanted]
    expected_out = reference_attention(
        exact[0],
        exact[1],
        exact[2],
        _layout(case, lengths, positions),
        _square(exact[3], reach) if case.bias else None,
        causal=case.causal,
    )
    expected = [expected_out, *torch.autograd.grad(expected_out, exact, grad.double().cpu())]
    names = ["output", "d_query", "d_key", "d_value", "d_bias"]
    found = {name: _relative(a, b) for name, a, b in zip(names, ours, expected, strict=False)}
    assert mass is not None
    total = heads * float(queries.sum())  # every query spreads a weight of one
    return {**found, "mass": abs(float(mass.detach().sum()) - total) / total}


def _layout(case: Case, lengths: Tensor, positions: Tensor | None) -> Layout:
    """The layout of a case on the device of `lengths`: spans on a GPU, groups on a CPU."""
    layout = (
        Layout.padded(lengths, case.pad_to)
        if case.pad_to
        else Layout.packed(lengths, case.longest, positions_S=positions, reach=case.reach)
    )
    return layout.cross(Layout.equal(len(lengths), case.queries, lengths.device)) if case.queries else layout


def _kept_positions(lengths: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Draw ascending positions below `reach` for the tokens of each sequence, one sequence after another."""
    return torch.cat([torch.randperm(reach, generator=generator)[:n].sort().values for n in lengths.tolist()])


def _square(bias_HR: Tensor, longest: int) -> Tensor:
    """Bias by distance -> [H, Q, K]."""
    position = torch.arange(longest)
    return bias_HR[:, position - position[:, None] + longest - 1]


def _relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.detach().double().cpu() - expected).norm() / expected.norm())


def main() -> int:
    """Print one line per case, worst error last. Returns the exit code."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = count = 0
    worst: dict[torch.dtype, float] = {}
    with ThreadPoolExecutor(12) as pool:  # most of the time goes into compiling kernels
        results = zip(cases(), pool.map(errors, cases()), strict=True)
        for case, found in results:
            largest = max(found.values())
            bad = not all(error <= BOUNDS[case.dtype] for error in found.values())  # nor may one be NaN
            failed, count = failed + bad, count + 1
            worst[case.dtype] = max(worst.get(case.dtype, 0.0), largest)
            print(
                f"{case}  "
                + "  ".join(f"{name} {value:.1e}" for name, value in found.items())
                + ("  ABOVE THE BOUND" if bad else ""),
                flush=True,
            )
    print(
        f"{count} cases, {failed} failed, largest error "
        + ", ".join(f"{str(dtype)[6:]} {value:.1e}" for dtype, value in worst.items())
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
