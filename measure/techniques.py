"""The techniques one by one and together against a plain baseline, with what a guide claims.

Goes in: files of one model. Come out: arms to run, and rows from their results, with the reasons of
:mod:`.reasons` where a claim is not reached.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infer_os.runtime.settings import EngineSettings

from . import reasons
from .arms import Arm, ArmResult
from .projection import Projection
from .reasons import Facts, Reason
from .rows import Label, Measurement, Row, make_rows

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed: a share of memory saved, or times as fast; ``why`` says why it is missed."""

    value: float
    why: Reason


@dataclass(frozen=True, slots=True)
class Technique:
    """A technique: its name, and what is claimed of it (None: nothing)."""

    name: str
    title: str
    memory: Claim | None = None
    speed: Claim | None = None

    def claim(self, metric: str) -> Claim | None:
        """The claim about a row's metric."""
        return {"technique_saved": self.memory, "technique_ratio": self.speed}.get(metric)


#: In the order of the table; the claims are the guide's.
TECHNIQUES = (
    Technique(
        "zero-copy", "zero-copy token loop",
        Claim(0.15, reasons.copy_memory), Claim(1.2, reasons.copy_speed),
    ),
    Technique(
        "staged-kv", "KV cache in stages",
        Claim(0.75, reasons.kv_memory), Claim(1.3, reasons.kv_speed),
    ),
    Technique(
        "speculative", "speculative decoding",
        Claim(0.10, reasons.guess_memory), Claim(1.4, reasons.guess_speed),
    ),
    Technique(
        "memory", "memory optimisation",
        Claim(0.20, reasons.rows_memory), Claim(1.1, reasons.rows_speed),
    ),
    Technique("quantized", "quantized weights"),
    Technique(
        "all", "all together", Claim(0.80, reasons.all_memory), Claim(2.5, reasons.all_speed)
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TechniqueFiles:
    """Files of one model: FP16 weights, quantized ones and a draft, where they exist."""

    baseline: Path
    quantized: Path | None = None
    draft: Path | None = None


def stages_for(n_prompt: int, n_ctx: int) -> str:
    """A schedule that has reached its last stage when the prompt is computed."""
    first, second = max(1, n_prompt // 4), max(2, n_prompt // 2)
    return f"f16:{first},q8_0:{second},q4_0:{max(n_ctx, second + 1)}"


def make_arms(files: TechniqueFiles, settings: EngineSettings, n_prompt: int) -> list[Arm]:
    """The baseline and each technique alone, then all together, as far as their files exist.

    The baseline copies every row to Python, computes a row of logits for every token of a prompt,
    and has an F16 cache. ``memory`` computes and reserves only the rows that are needed.
    """
    plain = replace(settings, kv="f16", kv_budget=0, draft="none")
    base = Arm(BASELINE, files.baseline, plain, copying=True, all_rows=True)
    stages = replace(plain, kv=stages_for(n_prompt, settings.context))
    draft, quantized = str(files.draft or "none"), files.quantized or files.baseline
    arms = [
        base,
        replace(base, name="zero-copy", copying=False),
        replace(base, name="staged-kv", settings=stages),
        replace(base, name="speculative", settings=replace(plain, draft=draft), copying=False),
        replace(base, name="memory", all_rows=False),
        replace(base, name="quantized", path=quantized),
        Arm("all", quantized, replace(stages, draft=draft)),
    ]
    without = {"speculative": files.draft is None, "quantized": files.quantized is None}
    return [arm for arm in arms if not without.get(arm.name)]


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
    shown = []
    for row in rows:
        technique = known.get(str(row.label("technique")))
        claim = technique.claim(row.metric) if technique else None
        if technique and claim:
            facts = Facts(baseline, middle(results[technique.name]), bandwidth)
            row = _beside_its_claim(row, claim, facts)
        shown.append(row)
    speed = known["speculative"].speed
    if projected is not None and speed is not None:
        shown.append(projected.row(model, speed.value))
    return shown


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


def _beside_its_claim(row: Row, claim: Claim, facts: Facts) -> Row:
    reached = row.median >= claim.value
    labels: dict[str, Label] = {**row.labels, "claimed": claim.value, "reached": reached}
    if not reached:
        labels["reason"] = claim.why(facts)
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
