"""The techniques one by one and together against a plain baseline, beside what a guide claims.

Goes in: files of one model. Come out: arms to run, and from their results rows with reasons, which
are computed from what was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infer_os.runtime.plan import size_text
from infer_os.runtime.settings import EngineSettings
from infer_os.runtime.speculative.costs import StepCosts
from infer_os.runtime.speculative.length import expected_gain

from .arms import Arm, ArmResult
from .rows import Label, Measurement, Row, make_rows

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Technique:
    """A technique: what it is called, and what is claimed of it (None: nothing).

    ``memory`` is the claimed part of memory saved, ``speed`` the claimed times as fast.
    """

    name: str
    title: str
    memory: float | None = None
    speed: float | None = None


#: In the order of the table; the claims are the guide's.
TECHNIQUES = (
    Technique("zero-copy", "zero-copy token loop", 0.15, 1.2),
    Technique("staged-kv", "KV cache in stages", 0.75, 1.3),
    Technique("speculative", "speculative decoding", 0.10, 1.4),
    Technique("memory", "memory optimisation", 0.20, 1.1),
    Technique("quantized", "quantized weights"),
    Technique("all", "all together", 0.80, 2.5),
)


@dataclass(frozen=True, slots=True)
class TechniqueFiles:
    """Files of one model: FP16 weights, quantized ones and a draft, as far as there are."""

    baseline: Path
    quantized: Path | None = None
    draft: Path | None = None


def stages_for(n_prompt: int, n_ctx: int) -> str:
    """A schedule that has reached its last stage when the prompt is computed."""
    first, second = max(1, n_prompt // 4), max(2, n_prompt // 2)
    return f"f16:{first},q8_0:{second},q4_0:{max(n_ctx, second + 1)}"


def make_arms(files: TechniqueFiles, settings: EngineSettings, n_prompt: int) -> list[Arm]:
    """The baseline and each technique alone, then all together; those that have their files.

    The baseline copies every row to Python, computes a row of logits for every token of a prompt,
    and has an F16 cache. ``memory`` computes and reserves only the rows that are needed.
    """
    plain = replace(settings, kv="f16", kv_budget=0, draft="none")
    base = Arm(BASELINE, files.baseline, plain, copying=True, all_rows=True)
    stages = replace(plain, kv=stages_for(n_prompt, settings.context))
    arms = [
        base,
        replace(base, name="zero-copy", copying=False),
        replace(base, name="staged-kv", settings=stages),
        replace(base, name="memory", all_rows=False),
    ]
    if files.draft is not None:
        guessing = replace(plain, draft=str(files.draft))
        arms.insert(3, replace(base, name="speculative", settings=guessing, copying=False))
    if files.quantized is not None:
        arms.append(replace(base, name="quantized", path=files.quantized))
    together = replace(stages, draft=str(files.draft or "none"))
    best = files.quantized or files.baseline
    return [*arms, Arm("all", best, together)]


def technique_rows(
    results: Mapping[str, Sequence[ArmResult]],
    model: str,
    bandwidth: float,
    projected: Projection | None = None,
) -> list[Row]:
    """The rows of the technique table, from results of the same tasks in the same order."""
    base = results[BASELINE]
    found: list[Measurement] = []
    for name, mine in results.items():
        found += _measured(name, mine, base)
    rows = make_rows(found, model)
    baseline = middle(base)
    known = {technique.name: technique for technique in TECHNIQUES}
    explained = []
    for row in rows:
        technique = known.get(str(row.label("technique")))
        if technique is not None and row.metric in ("technique_ratio", "technique_saved"):
            facts = Facts(baseline, middle(results[technique.name]), bandwidth)
            row = _explained(row, technique, facts)
        explained.append(row)
    return explained if projected is None else [*explained, *projected.rows(model)]


def _measured(name: str, mine: Sequence[ArmResult], base: Sequence[ArmResult]) -> list[Measurement]:
    labels: tuple[tuple[str, Label], ...] = (("technique", name),)
    found = []
    for one, plain in zip(mine, base, strict=True):
        values = (
            ("technique_decode", "tokens/s", one.tokens_per_s),
            ("technique_ratio", "times", one.tokens_per_s / plain.tokens_per_s),
            ("technique_prefill", "s", one.prefill_s),
            ("technique_peak", "bytes", one.peak),
            ("technique_saved", "of 1", 1 - one.peak / plain.peak),
            ("technique_kv", "bytes", one.kv),
            ("technique_kv_saved", "of 1", 1 - one.kv / plain.kv if plain.kv else 0.0),
        )
        found += [Measurement(metric, unit, value, labels) for metric, unit, value in values]
    return found


def _explained(row: Row, technique: Technique, facts: Facts) -> Row:
    speed = row.metric == "technique_ratio"
    claim = technique.speed if speed else technique.memory
    if claim is None:
        return row
    labels: dict[str, Label] = {**row.labels, "claimed": claim, "reached": row.median >= claim}
    if row.median < claim:
        explain = (SPEED_REASONS if speed else MEMORY_REASONS)[technique.name]
        labels["reason"] = explain(facts)
    return replace(row, labels=labels)


def middle(results: Sequence[ArmResult]) -> ArmResult:
    """A result of medians; counters and memory are the last round's."""
    last = results[-1]
    return replace(
        last,
        n_tokens=1,
        prefill_s=statistics.median(one.prefill_s for one in results),
        decode_s=statistics.median(one.token_s for one in results),
        draw_s=statistics.median(one.draw_s / one.n_tokens for one in results),
    )


# ---- reasons


@dataclass(frozen=True, slots=True)
class Facts:
    """What a reason is made of: medians of the baseline and the technique, and the machine's rate.

    ``bandwidth`` is in bytes per second.
    """

    base: ArmResult
    mine: ArmResult
    bandwidth: float

    @property
    def reading_share(self) -> float:
        """Of the technique's time per token, the part that reading its bytes takes at least."""
        return self.mine.token_bytes / self.bandwidth / self.mine.decode_s


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _copy_speed(facts: Facts) -> str:
    base = facts.base
    share = base.draw_s / base.decode_s
    return (
        f"copying a row and drawing from it in Python takes {_ms(base.draw_s)} of a token's "
        f"{_ms(base.decode_s)} ({_percent(share)}): without any of it, decoding would be at most "
        f"{1 / (1 - share):.2f} times as fast"
    )


def _copy_memory(facts: Facts) -> str:
    return (
        f"one copied row of logits is all that it saves; the baseline's peak of "
        f"{size_text(facts.base.peak)} is {_percent(facts.base.weights / facts.base.peak)} weights "
        f"and {_percent(facts.base.kv / facts.base.peak)} KV cache, which it does not touch"
    )


def _kv_speed(facts: Facts) -> str:
    base, mine = facts.base, facts.mine
    bound = base.token_bytes / mine.token_bytes
    share = base.kv_read / base.token_bytes
    return (
        f"K and V are {_percent(share)} of the {size_text(base.token_bytes)} that a token reads: "
        f"if reading alone bounded it, {bound:.2f} times as fast; dequantizing them costs time, too"
    )


def _kv_memory(facts: Facts) -> str:
    base, mine = facts.base, facts.mine
    return (
        f"the KV cache is {_percent(base.kv / base.peak)} of the baseline's peak of "
        f"{size_text(base.peak)}, so that no more than this can be saved; of the cache itself "
        f"{_percent(1 - mine.kv / base.kv)} is saved"
    )


def _guess_speed(facts: Facts) -> str:
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


def _guess_memory(facts: Facts) -> str:
    more = facts.mine.peak - facts.base.peak
    change = f"{size_text(more)} more" if more >= 0 else f"{size_text(-more)} less"
    return f"a draft is a second model with a cache of its own; the peak is {change}"


def _rows_speed(facts: Facts) -> str:
    base, mine = facts.base, facts.mine
    return (
        f"it changes what is held, not what a token reads: {size_text(mine.token_bytes)} either "
        f"way; a prompt, of which it computes one row of logits, takes "
        f"{mine.prefill_s / base.prefill_s:.2f} of the baseline's time"
    )


def _rows_memory(facts: Facts) -> str:
    base, mine = facts.base, facts.mine
    rows = base.logits - mine.logits + base.compute - mine.compute
    return (
        f"rows of logits and compute buffers shrink by {size_text(max(0, rows))}; weights and KV "
        f"cache are {_percent((base.weights + base.kv) / base.peak)} of the peak and stay"
    )


def _all_speed(facts: Facts) -> str:
    base, mine = facts.base, facts.mine
    return (
        f"a token reads {size_text(mine.token_bytes)} instead of {size_text(base.token_bytes)}, "
        f"which would allow {base.token_bytes / mine.token_bytes:.2f} times if reading alone "
        f"bounded both; reading takes {_percent(facts.reading_share)} of a token's time here"
    )


def _all_memory(facts: Facts) -> str:
    base, mine = facts.base, facts.mine
    rest = mine.peak - mine.weights - mine.kv
    return (
        f"of {size_text(mine.peak)}, {size_text(mine.weights)} are weights and "
        f"{size_text(mine.kv)} KV cache; the other {size_text(max(0, rest))} "
        f"({_percent(max(0, rest) / base.peak)} of the baseline's peak: program, vocabulary, "
        "buffers, draft) do not shrink with either"
    )


Reason = Callable[[Facts], str]
SPEED_REASONS: dict[str, Reason] = {
    "zero-copy": _copy_speed, "staged-kv": _kv_speed, "speculative": _guess_speed,
    "memory": _rows_speed, "all": _all_speed,
}  # fmt: skip
MEMORY_REASONS: dict[str, Reason] = {
    "zero-copy": _copy_memory, "staged-kv": _kv_memory, "speculative": _guess_memory,
    "memory": _rows_memory, "all": _all_memory,
}  # fmt: skip


# ---- a model without a draft


@dataclass(frozen=True, slots=True)
class Projection:
    """Speculative decoding of a model that no draft fits: its costs, another pair's acceptance.

    Args:
        steps: seconds of a batch of so many tokens on this model.
        rate: the probability that a guess was right on the other pair, if those before it were.
        guess_share: a guess of the other pair in steps of its model.
        pair: what the other pair is called.
        why: why acceptance cannot be measured on this model.
    """

    steps: Mapping[int, float]
    rate: float
    guess_share: float
    pair: str
    why: str
    draft_max: int = 6

    def gain(self) -> float:
        """Times as fast as plain steps, by the model that also decides while running."""
        curve = StepCosts(dict(self.steps))
        guess = self.guess_share * curve.seconds(1)
        return expected_gain(self.rate, self.draft_max, curve.seconds, lambda n: n * guess)

    def rows(self, model: str) -> list[Row]:
        """One row, marked as projected."""
        gain, claim = self.gain(), next(t for t in TECHNIQUES if t.name == "speculative")
        labels: dict[str, Label] = {
            "technique": "speculative", "projected": True, "claimed": claim.speed or 0.0,
            "reached": gain >= (claim.speed or 0.0),
            "reason": f"{self.why}: the rate of right guesses ({_percent(self.rate)}) and the cost "
            f"of a guess ({self.guess_share:.2f} steps) are those of {self.pair}, the cost of a "
            "verification is this model's",
        }  # fmt: skip
        return [Row("technique_ratio", "times", gain, gain, gain, 1, model, labels)]


def project(
    steps: Mapping[int, float], pair: Sequence[ArmResult], pair_name: str, why: str
) -> Projection | None:
    """From this model's costs and a pair that ran; None if the pair's model never guessed.

    The share of all guesses that were right would be too low: it counts those behind a wrong one,
    which nobody judged.
    """
    last = pair[-1]
    single = dict(last.steps).get(1, 0.0)
    if not last.acceptance or not single or len(steps) < 2:
        return None
    return Projection(steps, last.acceptance, last.guess_s / single, pair_name, why)
