"""Turn records into what a command prints: lines, tables, JSON objects."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..sizes import count_text, size_text
from . import console

if TYPE_CHECKING:
    from ..convert.report import CalibrationReport, ConversionReport
    from ..native.backend import KernelStatus
    from ..native.gguf_file import GgufHeader
    from ..runtime.generate import Completion
    from ..runtime.interface import Engine
    from ..runtime.kv.staged import KvStatus
    from ..runtime.memory import MemoryUse

_LONGEST_VALUE = 200


def header_json(header: GgufHeader) -> dict[str, Any]:
    """``inspect --json``."""
    return {
        "architecture": header.architecture,
        "metadata": {
            key: value if isinstance(value, (str, int, float, bool)) else list(value)
            for key, value in header.metadata.items()
        },
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "type": t.type.name, "bytes": t.n_bytes}
            for t in header.tensors
        ],
        "bits_per_weight": header.bits_per_weight,
        "parameters": header.n_params,
        "bytes": header.file_bytes,
    }


def show_header(header: GgufHeader) -> None:
    """``inspect``: metadata, tensors, totals."""
    console.table(("key", "value"), [(k, _shown(v)) for k, v in header.metadata.items()], left=2)
    console.answer("")
    console.table(
        ("tensor", "type", "shape", "size"),
        [
            (t.name, t.type.name, " x ".join(map(str, t.shape)), size_text(t.n_bytes))
            for t in header.tensors
        ],
        left=2,
    )
    console.answer(
        f"\n{len(header.tensors)} tensors, {count_text(header.n_params)} parameters, "
        f"{size_text(header.file_bytes)}, {header.bits_per_weight:.2f} bits per weight"
    )


def _shown(value: Any) -> str:
    if not isinstance(value, (str, int, float, bool)):
        return f"{len(value)} values"
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def statistics_line(completion: Completion, load_s: float | None = None) -> str:
    """What a generation cost, on one line."""
    from ..native.residency import peak_rss_bytes

    t = completion.timings
    if not t.prompt_tokens:
        return "[no reply yet]"
    loaded = f"load {load_s:.2f} s | " if load_s is not None else ""
    return (
        f"[{loaded}prompt {t.computed_tokens} of {t.prompt_tokens} tokens at "
        f"{t.prefill_tokens_per_s:.1f}/s | first token {t.first_token_s:.2f} s | "
        f"{t.completion_tokens} tokens at {t.decode_tokens_per_s:.1f}/s | peak RSS "
        f"{size_text(peak_rss_bytes())} | {completion.finish_reason.value}]"
    )


def kernels_json(status: KernelStatus) -> dict[str, Any]:
    """Whether our kernels run, for ``--json``."""
    return {
        "in_use": status.in_use,
        "variant": status.variant or None,
        "reason": status.reason or None,
    }


def kernels_line(status: KernelStatus) -> str:
    """The kernels of a run, for ``/stats``."""
    from ..native.backend import left_out

    share = left_out()
    busy = f", threads left out of {share:.0%} of the steps (busy cores)" if share >= 0.005 else ""
    return f"[own kernels {kernels_text(status)}{busy}]"


def kernels_text(status: KernelStatus) -> str:
    """Whether our kernels run, in a few words."""
    return f"in use, {status.variant}" if status.in_use else f"not in use: {status.reason}"


def memory_json(use: MemoryUse) -> dict[str, int | None]:
    """What is in memory, for ``--json``."""
    return {
        "rss_bytes": use.rss,
        "anonymous_bytes": use.anonymous,
        "model_pages_bytes": use.model_pages,
        "cached_file_bytes": use.cached,
        "weights_bytes": use.weights,
        "compute_bytes": use.compute,
        "logits_bytes": use.logits,
        "planned_bytes": use.planned,
    }


def memory_line(use: MemoryUse) -> str:
    """``/stats``: what is in memory, and what for."""
    size = size_text
    return (
        f"[resident {size(use.rss)}: {size(use.anonymous)} anonymous, {size(use.model_pages)} of "
        f"the model's file | weights {size(use.weights)}, KV {size(use.kv)}, compute "
        f"{size(use.compute)}, logits {size(use.logits)} | planned {size(use.planned)} at most]"
    )


def kv_line(kv: KvStatus) -> str:
    """``/kv``: stage, types, bytes, tokens."""
    return (
        f"stage {kv.stage} of {kv.n_stages} ({kv.schedule}): {kv.types}, "
        f"{size_text(kv.n_bytes)} for {kv.up_to} tokens, {kv.n_tokens} held; at most "
        f"{size_text(kv.peak_bytes)} so far"
    )


def completion_json(completion: Completion, engine: Engine, load_s: float) -> dict[str, Any]:
    """``generate --json``."""
    from ..native.backend import left_out
    from ..native.residency import peak_rss_bytes

    t = completion.timings
    return {
        "text": completion.text,
        "tokens": list(completion.tokens),
        "finish_reason": completion.finish_reason.value,
        "prompt_tokens": t.prompt_tokens,
        "completion_tokens": t.completion_tokens,
        "timings": {
            "load_s": load_s,
            "first_token_s": t.first_token_s,
            "prefill_tokens_per_s": t.prefill_tokens_per_s,
            "decode_tokens_per_s": t.decode_tokens_per_s,
        },
        "memory": {
            "peak_rss_bytes": peak_rss_bytes(),
            **memory_json(engine.memory()),
            "kv_bytes": engine.kv.n_bytes,
            "kv_peak_bytes": engine.kv.peak_bytes,
            "kv_schedule": engine.kv.schedule,
            "kv_stage": engine.kv.stage,
            "kv_types": engine.kv.types,
            "kv_tokens": engine.kv.n_tokens,
        },
        "adapter": engine.adapter or None,
        "kernels": {**kernels_json(engine.info.kernels), "threads_left_out": round(left_out(), 3)},
        "speculative": speculation_json(engine, t.decode_tokens_per_s),
    }


def speculation_json(engine: Engine, tokens_per_s: float) -> dict[str, Any]:
    """What guessing did, for ``--json``."""
    if engine.speculation is None:
        return {"drafted": 0, "accepted": 0}
    report = engine.speculation.report()
    return {
        "drafted": report.drafted,
        "accepted": report.accepted,
        "mean_length": report.mean_length,
        "tokens_per_s": tokens_per_s,
        "plain_tokens_per_s": report.plain_tokens_per_s,
        "step_s": report.step_s,
        "drafters": [asdict(drafter) for drafter in report.drafters],
    }


def speculation_line(engine: Engine) -> str | None:
    """What guessing did, on one line; None if nothing guesses."""
    if engine.speculation is None:
        return None
    report = engine.speculation.report()
    guesses = "none"
    if report.drafted:
        guesses = (
            f"{report.accepted} of {report.drafted} right, {report.mean_length:.1f} tokens a "
            "verification"
        )
    parts = [f"[guesses: {guesses}; plain steps would give {report.plain_tokens_per_s:.1f}/s"]
    for drafter in report.drafters:
        state = f"{drafter.accepted} of {drafter.drafted} right" if drafter.drafted else "no guess"
        if drafter.drafted:
            state += f", {100 * drafter.acceptance:.0f} % of late"
        if not drafter.on:
            state += f", off: expected {drafter.gain:.2f} times the speed"
        parts.append(f"{drafter.name}: {state}")
    return " | ".join(parts) + "]"


def report_json(report: ConversionReport) -> dict[str, Any]:
    """``convert --json``."""
    return {
        "output": str(report.output),
        "architecture": report.architecture,
        "graph": report.graph,
        "type": report.type,
        "bytes": report.n_bytes,
        "bits_per_weight": report.bits_per_weight,
        "tensors": [
            {"role": row.role, "type": row.type, "count": row.n_tensors, "bytes": row.n_bytes}
            for row in report.classes
        ],
        "seconds": report.seconds,
        "peak_rss_bytes": report.peak_rss_bytes,
        "errors": [
            {
                "role": row.role,
                "type": row.type,
                "rms": row.stats.rms_error,
                "max": row.stats.max_abs_error,
            }
            for row in report.classes
        ],
        "calibration": asdict(report.calibration) if report.calibration else None,
        "notes": list(report.notes),
        "written": report.written,
        "verified": report.verified,
    }


def show_report(report: ConversionReport) -> None:
    """``convert``: the table of tensor classes, notes, totals."""
    columns = ["tensors", "type", "count", "size", "bits"]
    rows = [
        [
            row.role, row.type, str(row.n_tensors), size_text(row.n_bytes),
            f"{row.bits_per_weight:.2f}",
        ]
        for row in report.classes
    ]  # fmt: skip
    if report.written:  # a dry run has no errors to show
        columns += ["RMS error", "max error"]
        for cells, row in zip(rows, report.classes, strict=True):
            cells += [f"{row.stats.rms_error:.2e}", f"{row.stats.max_abs_error:.2e}"]
    console.table(columns, rows, left=2, stderr=True)
    if report.calibration is not None:
        _show_calibration(report.calibration)
    console.notes(report.notes)
    verb = "wrote" if report.written else "would write"
    console.note(
        f"{verb} {report.output}: {report.architecture} ({count_text(report.n_params)} parameters) "
        f"as {report.type}, {size_text(report.n_bytes)}, {report.bits_per_weight:.2f} bits per "
        f"weight, {report.seconds:.1f} s, peak RSS {size_text(report.peak_rss_bytes)}"
    )


def _show_calibration(report: CalibrationReport) -> None:
    """How much the statistics helped, on text they were not collected from."""
    used = "with gptq" if report.method == "gptq" else "with weights"
    rows = [
        (name, f"{q.perplexity:.3f}", f"{q.kl:.6f}", f"{100 * q.top1:.2f} %")
        for name, q in (("without weights", report.without), (used, report.with_weights))
    ]
    console.note(
        f"calibrated on {report.chunks} chunks of {report.text}; on {report.without.n_tokens} "
        f"held-out tokens of it, against Q8_0 (perplexity "
        f"{report.without.reference_perplexity:.3f}):"
    )
    console.table(("", "perplexity", "KL", "same top token"), rows, stderr=True)
    if report.predicted_kl:
        console.note(
            f"types chosen by what each matrix loses: KL {report.predicted_kl:.6f} predicted, "
            f"{report.with_weights.kl:.6f} measured"
        )
