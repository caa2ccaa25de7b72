"""torch's settings given back after each test: training a quantizer sets them for the process."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _torch_settings_given_back() -> Iterator[None]:
    import torch  # here, because most of this folder needs none

    threads, fixed = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(fixed)
