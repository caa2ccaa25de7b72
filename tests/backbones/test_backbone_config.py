"""What `backbone:` refuses."""

from typing import Any

import pytest
from settings import some

from pipeline.backbones.config import BackboneConfig


@pytest.mark.parametrize(
    "bad",
    [
        {"heads": 0},
        {"d_model": -1},
        {"ff_hidden_layers": 0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"relative_buckets": 2},
        {"relative_buckets": 32, "relative_max_distance": 16},
    ],
)
def test_a_size_that_makes_no_network_is_refused_by_name(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        some(BackboneConfig, **bad)
