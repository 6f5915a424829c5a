"""Why a technique misses its claim, in words, from what was measured.

Goes in: :class:`Facts`. Comes out: a sentence with their figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infer_os.runtime.speculative.costs import StepCosts
from infer_os.sizes import size_text

from .arms import ArmResult


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reason is based on: medians of baseline and technique, and the memory bandwidth.

    ``bandwidth`` is in bytes per second.
    """

    base: ArmResult
    mine: ArmResult
    bandwidth: float

    @property
    def reading_share(self) -> float:
        """The least part of the technique's time per token that reading its bytes takes."""
        return self.mine.token_bytes / self.bandwidth / self.mine.decode_s


def percent(share: float) -> str:
    """Such as ``12.5 %``."""
    return f"{100 * share:.3g} %"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def copy_speed(facts: Facts) -> str:
    """The time spent drawing limits what a loop without copies can gain."""
    base = facts.base
    share = base.draw_s / base.decode_s
    return (
        f"copying a row and drawing from it in Python takes {_ms(base.draw_s)} of a token's "
        f"{_ms(base.decode_s)} ({percent(share)}): without any of it, decoding would be at most "
        f"{1 / (1 - share):.2f} times as fast"
    )


def copy_memory(facts: Facts) -> str:
    """The loop copies only one row."""
    return (
        f"it saves only one copied row of logits; the baseline's peak of "
        f"{size_text(facts.base.peak)} is {percent(facts.base.weights / facts.base.peak)} weights "
        f"and {percent(facts.base.kv / facts.base.peak)} KV cache, which it does not touch"
    )


def kv_speed(facts: Facts) -> str:
    """K and V are only a part of what a token reads."""
    base, mine = facts.base, facts.mine
    bound = base.token_bytes / mine.token_bytes
    share = base.kv_read / base.token_bytes
    return (
        f"K and V are {percent(share)} of the {size_text(base.token_bytes)} that a token reads: "
        f"were reading the only limit, {bound:.2f} times as fast; dequantizing also takes time"
    )


def kv_memory(facts: Facts) -> str:
    """The cache is only a part of the peak."""
    base, mine = facts.base, facts.mine
    return (
        f"the KV cache is {percent(base.kv / base.peak)} of the baseline's peak of "
        f"{size_text(base.peak)}, so no more than this can be saved; of the cache itself "
        f"{percent(1 - mine.kv / base.kv)} is saved"
    )


def guess_speed(facts: Facts) -> str:
    """How many guesses were right, and the cost of making and verifying them."""
    mine = facts.mine
    if not mine.rounds:
        return "no guess was verified: by its measured costs none would have paid"
    length = (mine.accepted + mine.rounds) / mine.rounds
    per_round = mine.drafted / mine.rounds
    text = (
        f"{mine.accepted} of {mine.drafted} guesses were right: {length:.2f} tokens a verification "
        f"of {per_round + 1:.1f}"
    )
    costs = dict(mine.steps)
    if len(costs) > 1:
        curve = StepCosts(costs)
        n = round(per_round) + 1
        text += (
            f", which takes {curve.seconds(n) / curve.seconds(1):.2f} times as long as a single "
            f"step; a guess costs {mine.guess_s / curve.seconds(1):.2f} steps"
        )
    return text


def guess_memory(facts: Facts) -> str:
    """A draft needs more memory, not less."""
    more = facts.mine.peak - facts.base.peak
    change = f"{size_text(more)} more" if more >= 0 else f"{size_text(-more)} less"
    return f"a draft is a second model with a cache of its own; the peak is {change}"


def rows_speed(facts: Facts) -> str:
    """A token does not read rows of logits."""
    base, mine = facts.base, facts.mine
    return (
        f"it changes what is held, not what a token reads: {size_text(mine.token_bytes)} either "
        f"way; a prompt, of which it computes one row of logits, takes "
        f"{mine.prefill_s / base.prefill_s:.2f} of the baseline's time"
    )


def rows_memory(facts: Facts) -> str:
    """Rows of logits and buffers are only a part of the peak."""
    base, mine = facts.base, facts.mine
    rows = base.logits - mine.logits + base.compute - mine.compute
    return (
        f"rows of logits and compute buffers shrink by {size_text(max(0, rows))}; weights and KV "
        f"cache are {percent((base.weights + base.kv) / base.peak)} of the peak and stay"
    )


def all_speed(facts: Facts) -> str:
    """Bytes per token, and how much of the time it takes to read them."""
    base, mine = facts.base, facts.mine
    return (
        f"a token reads {size_text(mine.token_bytes)} instead of {size_text(base.token_bytes)}, "
        f"which would allow {base.token_bytes / mine.token_bytes:.2f} times the speed if reading "
        f"were the only limit; reading takes {percent(facts.reading_share)} of a token's time here"
    )


def all_memory(facts: Facts) -> str:
    """Everything but weights and cache stays the same size."""
    base, mine = facts.base, facts.mine
    rest = mine.peak - mine.weights - mine.kv
    return (
        f"of {size_text(mine.peak)}, {size_text(mine.weights)} are weights and "
        f"{size_text(mine.kv)} KV cache; the other {size_text(max(0, rest))} "
        f"({percent(max(0, rest) / base.peak)} of the baseline's peak: program, vocabulary, "
        "buffers, draft) does not shrink with either"
    )


Reason = Callable[[Facts], str]
