"""A folder per strategy, each holding only its difference from plain training (`base.py`); `registry.py` finds them."""
