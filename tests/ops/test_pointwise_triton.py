"""The GPU kernels of HSTU's attention give what the float64 reference gives. Runs where there is a GPU."""

import pytest

pytest.importorskip("triton", reason="no GPU: Triton is not installed")

from benchmarks.kernels_silu import BOUNDS, SiluCase, silu_cases, silu_errors

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", list(silu_cases()), ids=str)
def test_outputs_and_gradients_equal_the_reference(case: SiluCase) -> None:
    found = silu_errors(case)
    assert all(error <= BOUNDS[case.dtype] for error in found.values()), found
