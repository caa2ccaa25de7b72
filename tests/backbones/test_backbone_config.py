"""What `backbone:` refuses."""

from typing import Any

import pytest
from settings import read_params

from pipeline.errors import UserError


@pytest.mark.parametrize(
    "bad",
    [
        {"heads": 0},
        {"d_model": -1},
        {"ff_hidden_layers": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"relative_buckets": 2},
        {"relative_max_distance": 16, "relative_buckets": 32},
        {"d_ff": 0},
        {"encoder_layers": 10**6},
    ],
)
def test_a_size_that_makes_no_network_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^backbone\.{next(iter(bad))} "):
        read_params({"backbone": bad})


def test_sizes_that_no_machine_holds_are_refused_together() -> None:
    with pytest.raises(UserError, match=r"backbone has about [0-9.]+e\+11 weights, 2e\+10 at most"):
        read_params({"backbone": {"encoder_layers": 128, "decoder_layers": 128, "d_model": 16_384, "d_ff": 65_536}})
