"""Decide after which optimizer steps validation comes: every so many, or when training has cost enough since the last.

`train.validate_every: auto` makes validation a tenth of the arithmetic: the next one comes when the windows trained
since the last one have cost `TIMES` validations. The cost is counted in positions that go forward through the network,
never in seconds, so that a run has the same validations on every machine, and after it was resumed.

- A trained window costs its encoder positions and one decoder position per level, `TRAINING` times: a backward pass has
  two matrix products for each one of the forward pass.
- A validated user costs the positions of the history twice, for the loss and for the ranking, one decoder position per
  level for the loss, and for the search 1 position at the first level and a beam of them at each further one.

The count leaves out what does not grow with positions, such as the softmax over the catalogue of a network over items;
`train` prints the share of the seconds that validation really took.
"""

from dataclasses import dataclass
from typing import Literal

TIMES = 9  # validations' worth of training between two validations
TRAINING = 3  # forward passes that a training step costs


@dataclass(frozen=True, kw_only=True)
class ValidationTimes:
    """These are the settings and sizes that decide when validation comes.

    every: steps, or windows where `by_windows`, or `auto`. users: how many a validation measures. positions: encoder
    positions of their histories. levels: codes of an item. beam: beam width of the validation; 0: it searches nothing,
    so that the histories are read once, for the loss.
    """

    every: int | Literal["auto"]
    by_windows: bool = False
    users: int
    positions: int
    levels: int
    beam: int

    @property
    def cost(self) -> int:
        """Return the cost of one validation, in positions."""
        if not self.beam:
            return self.positions + self.users * self.levels
        search = 1 + (self.levels - 1) * self.beam
        return 2 * self.positions + self.users * (self.levels + search)

    def trained(self, positions: int, windows: int) -> int:
        """Return the cost of training on `windows` with so many encoder positions."""
        return TRAINING * (positions + windows * self.levels)

    def due(self, step: int, cost: int, windows: tuple[int, int] = (0, 0)) -> bool:
        """Return whether a validation comes after this step.

        Args:
            step: steps done.
            cost: of the training since the last validation.
            windows: trained or skipped before this step, and after it.
        """
        if self.by_windows and self.every != "auto":
            return windows[1] // self.every > windows[0] // self.every
        return cost >= TIMES * self.cost if self.every == "auto" else step % self.every == 0

    def left(self, step: int, last: float, cost: int, since: int) -> int:
        """Return how many validations are to come until step `last`, its own included, by the mean cost of a step.

        Args:
            step: steps done; windows, where these are counted.
            last: the last step, as far as it can be foreseen, or window.
            cost: of all training until now.
            since: of the training since the last validation.
        """
        if self.every != "auto":
            return max(0, -int(-last // self.every) - step // self.every)
        to_come = cost * (last / max(step, 1) - 1)
        return max(0, int((since + to_come) // (TIMES * self.cost)) + 1)
