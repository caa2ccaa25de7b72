"""Residual k-means on a GPU, by faiss-gpu."""

import numpy as np
import pytest
from slow_residual import clouds, rkmeans

pytest.importorskip("faiss", reason="no faiss-gpu")
import faiss

pytestmark = pytest.mark.gpu


def test_a_gpu_gives_clusters_as_good_as_the_cpu() -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("no faiss-gpu")
    vectors = clouds(8, items=3000, width=32)
    errors = [np.square(rkmeans(codes=64, device=device).fit(vectors).errors_I).sum() for device in ("cpu", "cuda")]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)
