"""Speculative decoding where no draft can be measured: its costs, and another pair's acceptance.

Goes in: the seconds of this model's batches, and results of a pair that ran. Comes out: a row
marked as projected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infer_os.runtime.speculative.costs import StepCosts
from infer_os.runtime.speculative.length import expected_gain

from .arms import ArmResult
from .reasons import percent
from .rows import Label, Row


@dataclass(frozen=True, slots=True)
class Projection:
    """Speculative decoding of a model without a draft: its costs, another pair's acceptance.

    Args:
        steps: seconds per batch by its number of tokens, on this model.
        rate: the other pair's probability that a guess was right if those before it were.
        guess_share: cost of a guess of the other pair, in steps of its model.
        pair: name of the other pair.
        why: why acceptance cannot be measured on this model.
    """

    steps: Mapping[int, float]
    rate: float
    guess_share: float
    pair: str
    why: str
    draft_max: int = 6

    def gain(self) -> float:
        """Times as fast as plain steps, by the cost model that decides at run time as well."""
        curve = StepCosts(dict(self.steps))
        guess = self.guess_share * curve.seconds(1)
        return expected_gain(self.rate, self.draft_max, curve.seconds, lambda n: n * guess)

    def row(self, model: str, claim: float) -> Row:
        """A row marked as projected, with the speed-up that is claimed."""
        gain = self.gain()
        labels: dict[str, Label] = {
            "technique": "speculative", "projected": True, "claimed": claim,
            "reached": gain >= claim,
            "reason": f"{self.why}: the rate of right guesses ({percent(self.rate)}) and the cost "
            f"of a guess ({self.guess_share:.2f} steps) are those of {self.pair}, the cost of a "
            "verification is this model's",
        }  # fmt: skip
        return Row("technique_ratio", "times", gain, gain, gain, 1, model, labels)


def project(
    steps: Mapping[int, float], pair: Sequence[ArmResult], pair_name: str, why: str
) -> Projection | None:
    """From this model's costs and a pair that ran; None if the pair's model never guessed.

    The share of all guesses that were right would be too low: it counts those after a wrong one,
    which were never judged.
    """
    last = pair[-1]
    single = dict(last.steps).get(1, 0.0)
    if not last.acceptance or not single or len(steps) < 2:
        return None
    return Projection(steps, last.acceptance, last.guess_s / single, pair_name, why)
