"""Each folder here is a strategy: its difference from plain training (`base.py`). `registry.py` finds the folders."""
