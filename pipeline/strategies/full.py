"""full: every token of every window, nothing skipped. The baseline of all comparisons.

Paper: none; plain next-item training of TIGER (Rajput et al., NeurIPS 2023), as GRID trains it.
Equations: cross-entropy of the target's codes, teacher-forced, summed over levels, averaged over windows.
Different on purpose: nothing is spent on padding, so a gain against `full` is a gain over a baseline without waste.
Command: dvc exp run -S strategy=full
"""

from pipeline.strategies.base import Strategy


class Full(Strategy):
    """The difference is that there is none."""
