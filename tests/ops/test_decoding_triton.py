"""The kernels of decoding give what the plain path gives. Runs where there is a GPU, or in Triton's interpreter
(TRITON_INTERPRET=1), where matrix products round as the CPU's do.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import MakeCausal, MakeModel, RandomWindows

from pipeline.catalogue import Catalogue
from pipeline.decoding import beam_search as beam_module
from pipeline.decoding.beam_search import beam_search, best_continuations
from pipeline.ops.attention import attend_to_ancestors
from pipeline.ops.layout import Layout, make_spans
from pipeline.ops.reference import reference_attention
from pipeline.packing.backbone import Backbone
from pipeline.packing.histories import Histories

pytest.importorskip("triton", reason="no GPU: Triton is not installed")
from pipeline.decoding import beam_triton
from pipeline.ops.triton import decoding as decoding_triton

GPU = torch.cuda.is_available()
pytestmark = pytest.mark.gpu(interpreter=True)
DEVICE = "cuda" if GPU else "cpu"
WIDTHS = (14, 12, 10, 4)
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1.2e-2}
precisions = pytest.mark.parametrize("dtype", BOUNDS if GPU else [torch.float32], ids=str)


def relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours.double().cpu() - expected.double()).norm() / expected.double().norm())


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers on the CPU, rounded to what `dtype` holds."""
    return (torch.randn(*shape) * 0.5).to(dtype)


@precisions
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 16, 40), (37, 384, 70), (1500, 128, 200), (2100, 64, 600)])
@pytest.mark.parametrize("parts", ["", "norm", "norm relu", "relu residual", "norm residual"])
def test_one_kernel_does_norm_product_relu_and_residual(
    rows: int, inputs: int, outputs: int, parts: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, weight, scale = random(rows, inputs), random(outputs, inputs, dtype=dtype).float(), torch.rand(inputs) + 0.5
    residual = random(rows, outputs) if "residual" in parts else None
    ours = decoding_triton.linear(
        x.to(DEVICE),
        weight.to(DEVICE),
        dtype,
        norm_d=scale.to(DEVICE) if "norm" in parts else None,
        relu="relu" in parts,
        residual_Rn=None if residual is None else residual.to(DEVICE),
    )
    x = F.rms_norm(x.double(), (inputs,), scale.double(), 1e-6) if "norm" in parts else x.double()
    expected = x @ weight.double().T
    expected = expected.relu() if "relu" in parts else expected
    expected = expected if residual is None else expected + residual
    assert ours.dtype == (dtype if residual is None else torch.float32)
    assert relative(ours, expected) < BOUNDS[dtype]


@precisions
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_a_beam_attends_to_its_ancestors_where_they_were_written(levels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    windows, heads, width, beams = 3, 3, 24, [1, 4, 7, 7][:levels]
    q, *past = (random(windows * count, 3, heads, width, dtype=dtype) for count in (beams[-1], *beams))
    rows = torch.zeros(len(q), levels - 1, dtype=torch.int64)
    for level, count in enumerate(beams[:-1]):
        rows[:, level] = torch.randint(0, windows * count, (len(q),))
    bias = torch.randn(heads, 5)[:, :levels]
    exact = [(x[:, 1].double(), x[:, 2].double()) for x in past]
    expected = attend_to_ancestors(past[-1][:, 0].double(), exact, rows, bias.double())
    past = [x.to(DEVICE) for x in past]
    ours = decoding_triton.attend_to_ancestors(
        past[-1][:, 0], [(x[:, 1], x[:, 2]) for x in past], rows.to(DEVICE), bias.to(DEVICE)
    )
    assert relative(ours, expected) < BOUNDS[dtype]


@precisions
@pytest.mark.parametrize(
    ("queries", "bias", "causal"),
    [(5, False, False), (70, False, False), (0, True, False), (0, True, True), (0, False, True)],
)
def test_one_launch_attends_within_windows_of_all_lengths(
    queries: int, bias: bool, causal: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    heads, width, lengths = 2, 24, torch.tensor([1, 3, 40, 41, 100])
    sizes = torch.full_like(lengths, queries) if queries else lengths
    starts = F.pad(lengths.cumsum(0), (1, 0)).to(DEVICE)
    spans = make_spans(starts, starts, lengths.to(DEVICE), longest_q=100, longest_k=100)
    q, k, v = (random(int(total), heads, width, dtype=dtype) for total in (sizes.sum(), lengths.sum(), lengths.sum()))
    table = torch.randn(heads, 199) if bias else None
    ours = decoding_triton.attend(
        q.to(DEVICE),
        k.to(DEVICE),
        v.to(DEVICE),
        spans,
        None if table is None else table.to(DEVICE),
        causal,
        equal=bool(queries),
    )
    position = torch.arange(100)
    square = None if table is None else table[:, position - position[:, None] + 99]
    layout = Layout.packed(lengths, 100).cross(Layout.packed(sizes, 100))
    assert relative(ours, reference_attention(q, k, v, layout, square, causal=causal)) < BOUNDS[dtype]


@pytest.fixture
def catalogue() -> Catalogue:
    codes = np.unique(np.random.default_rng(0).integers(0, WIDTHS, (600, 4)), axis=0)
    return Catalogue(codes, WIDTHS)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("beam", [1, 17])
@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_a_level_chooses_what_the_plain_path_chooses(
    catalogue: Catalogue, constrained: bool, beam: int, level: int, ties: bool
) -> None:
    torch.manual_seed(0)
    beams = min(beam, catalogue.prefixes[level])
    nodes = torch.stack([torch.randperm(catalogue.prefixes[level])[:beams] for _ in range(3)])
    logits, scores = torch.randn(3, beams, WIDTHS[level]), torch.randn(3, beams).sort(1, descending=True).values
    if ties:
        logits.zero_()
        scores.zero_()
    scores[:, beams // 2 + 1 :] = -torch.inf  # empty beams
    nodes[:, beams // 2 + 1 :] = 0
    expected = best_continuations(catalogue, level, nodes, scores, logits, beam, constrained)
    found = beam_triton.best_continuations(
        catalogue.to(DEVICE), level, nodes.to(DEVICE), scores.to(DEVICE), logits.to(DEVICE), beam, constrained
    )
    ours = [x.cpu() for x in found]
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-6, atol=1e-6)
    named = expected[0] > -torch.inf
    for mine, theirs in zip(ours[1:], expected[1:], strict=True):
        assert torch.equal(mine[named], theirs[named])


@pytest.mark.gpu(interpreter=False)
@pytest.mark.parametrize(
    ("constrained", "pad_to", "beam"), [(True, 0, 1), (True, 0, 40), (False, 0, 40), (True, 50, 8)]
)
def test_a_search_on_a_gpu_finds_what_it_finds_on_a_cpu(
    make_model: MakeModel, random_windows: RandomWindows, constrained: bool, pad_to: int, beam: int
) -> None:
    model = make_model(items=600, widths=WIDTHS)
    assert_equal_on_both(model, random_windows, constrained, pad_to, beam)


@pytest.mark.gpu(interpreter=False)
def test_a_causal_search_on_a_gpu_finds_what_it_finds_on_a_cpu(
    make_causal: MakeCausal, random_windows: RandomWindows
) -> None:
    assert_equal_on_both(make_causal("decoder", items=600, widths=WIDTHS), random_windows, True, 0, 40)


def assert_equal_on_both(
    model: Backbone, random_windows: RandomWindows, constrained: bool, pad_to: int, beam: int
) -> None:
    items_N, offsets, _ = random_windows(20, 600)
    expected = beam_search(model, Histories.pack(items_N, offsets, pad_to=pad_to), beam, constrained)
    ours = beam_search(model.cuda(), Histories.pack(items_N, offsets, "cuda", pad_to=pad_to), beam, constrained)
    torch.testing.assert_close(ours.scores_WK.cpu(), expected.scores_WK, rtol=1e-4, atol=1e-4)
    assert (ours.codes_WKL.cpu() == expected.codes_WKL).all(
        -1
    ).float().mean() > 0.99  # nearly equal scores may change their order


@pytest.mark.gpu(interpreter=False)
def test_a_beam_too_wide_for_a_program_takes_the_plain_path(
    make_model: MakeModel, random_windows: RandomWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(items=600, widths=WIDTHS).cuda()
    items_N, offsets, _ = random_windows(5, 600)
    histories = Histories.pack(items_N, offsets, "cuda")
    on_kernels = beam_search(model, histories, 30)
    monkeypatch.setattr(beam_module, "WIDEST_ON_KERNELS", 0)
    plain = beam_search(model, histories, 30)
    assert torch.equal(on_kernels.items_WK, plain.items_WK)
