"""Training a quantizer changes torch's settings for the process."""

import pytest


@pytest.fixture(autouse=True)
def _given_back(torch_settings_given_back: None) -> None:
    """Restores the settings after each test."""
