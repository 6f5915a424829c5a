"""Turn plans, the system's report and memory readings into tables, lines and JSON objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runtime.plan.choice import FLOOR, headroom
from ..runtime.plan.memory_plan import OUTSIDE
from ..sizes import size_text
from . import console
from .render import kernels_json, kernels_text

if TYPE_CHECKING:
    from ..runtime.plan.memory_plan import Plan
    from ..store.planning import PlanAnswer, Recommendation, SystemReport

#: Columns of the terminal that the whole ranking of models needs.
_WIDE = 100


def plan_json(answer: PlanAnswer) -> dict[str, Any]:
    """``plan --json``: bytes."""
    plan = answer.plan
    return {
        "model": plan.shape.name,
        "context": plan.sizes.n_ctx,
        "parallel": plan.sizes.n_seq,
        "weights": plan.weights.n_bytes,
        "kv": plan.kv,
        "compute": plan.compute,
        "logits": plan.logits,
        "process": plan.process,
        "beside": dict(plan.beside.parts),
        "passing": plan.beside.passing,
        "staging": plan.staging,
        "draft": plan.draft,
        "total": plan.total,
        "memory": plan.limit,
        "fits": plan.fits,
        "choice": {"type": plan.weights.type, "kv": plan.schedule.spec, "load": plan.load},
        "reasons": list(plan.reasons),
        "stages": [
            {"kv": stage.name, "tokens": stage.up_to, "bytes": n_bytes}
            for stage, n_bytes in zip(plan.schedule.stages, plan.stage_bytes, strict=True)
        ],
        "types": [
            {
                "type": p.weights.type, "weights": p.weights.n_bytes, "total": p.total,
                "fits": p.fits, "tokens_per_s": p.tokens_per_s,
            }
            for p in answer.types
        ],
        "predicted_decode_tokens_per_s": plan.tokens_per_s,
        "notes": list(answer.notes),
    }  # fmt: skip


def show_plan(plan: Plan, *, stderr: bool = False) -> None:
    """The table of a plan: one line per part, and the sum against the limit."""
    stages = ", then ".join(
        f"{stage.name} to {stage.up_to}" for stage in plan.schedule.stages
    )  # fmt: skip
    rows = [
        ("weights", f"{plan.weights.type}, load {plan.load}", plan.weights.n_bytes),
        ("KV cache", f"{stages} tokens" + _times(plan.sizes.n_seq), plan.kv),
        ("compute buffers", f"{plan.sizes.n_ubatch} tokens at once", plan.compute),
        ("logits", f"{plan.sizes.n_rows} rows", plan.logits),
        ("program", f"with {plan.shape.n_vocab} tokens of vocabulary", plan.process),
    ]
    rows += [(name, "", n_bytes) for name, n_bytes in plan.beside.parts]
    if plan.draft:
        n = plan.beside.n_drafts
        rows.append(("draft", "weights, cache and buffers" + _times(n), plan.draft))
    if plan.when == OUTSIDE:  # in memory instead of the model, not next to it
        rows.append(("before or after", "without the model", plan.beside.passing))
    cells = [(name, what, size_text(n_bytes)) for name, what, n_bytes in rows]
    cells.append(("total", plan.when, size_text(plan.total, up=True)))
    verdict = "fits" if plan.fits else "does not fit"
    cells.append(("may use", verdict, size_text(plan.limit)))
    console.table((plan.shape.name, "", "size"), cells, left=2, stderr=stderr)


def _times(n: int) -> str:
    return f", {n} sequences" if n > 1 else ""


def show_answer(answer: PlanAnswer) -> None:
    """``plan``: the parts, every type, the reasons."""
    plan = answer.plan
    show_plan(plan)
    if len(answer.types) > 1:
        console.answer("")
        rows = [
            (
                p.weights.type, size_text(p.weights.n_bytes), size_text(p.total),
                "yes" if p.fits else "no", _rate(p.tokens_per_s),
            )
            for p in answer.types
        ]  # fmt: skip
        console.table(("type", "weights", "total", "fits", "tokens/s at most"), rows)
    console.answer("")
    for text in (*plan.reasons, *answer.notes):
        console.answer_paragraph(text)
    if plan.tokens_per_s:
        n = plan.sizes.n_seq
        what = "token" if n == 1 else f"step of {n} sequences"
        console.answer_paragraph(
            f"at most {_rate(plan.tokens_per_s)} tokens/s without guesses: this machine's read "
            f"bandwidth over the bytes read per {what}"
        )


def _rate(tokens_per_s: float | None) -> str:
    if tokens_per_s is None:
        return "?"
    return f"{tokens_per_s:.0f}" if tokens_per_s >= 20 else f"{tokens_per_s:.1f}"


def system_json(report: SystemReport) -> dict[str, Any]:
    """``system --json``."""
    memory, cpu, group = report.memory, report.cpu, report.memory.group
    best = report.recommended
    return {
        "memory": {
            "total": memory.total, "available": memory.available, "usable": memory.usable,
            "swap_total": memory.swap_total, "swap_free": memory.swap_free,
            "cgroup": group and {"path": group.path, "limit": group.limit, "used": group.used},
            "rlimit": memory.rlimit,
        },
        "cpu": {
            "model": cpu.model, "sockets": cpu.sockets, "cores": cpu.cores,
            "threads": cpu.threads, "usable": cpu.usable,
        },
        "extensions": {
            "used": list(report.extensions.used), "unused": list(report.extensions.unused),
        },
        "kernels": kernels_json(report.kernels),
        "amx": {
            "present": report.kernels.amx.present, "in_use": report.kernels.amx.in_use,
            "reason": report.kernels.amx.complaint or None,
        },
        "whole_steps": sorted(report.own_types),
        "layouts": {
            "types": sorted(report.layouts.types), "reason": report.layouts.reason or None,
        },
        "bandwidth_bytes_per_s": report.bandwidth.all_cores,
        "bandwidth_one_core_bytes_per_s": report.bandwidth.one_core,
        "disk": {"folder": str(report.disk.folder), "free": report.disk.free},
        "ranking": [
            {
                "model": ranked.model.id, "type": ranked.plan.weights.type,
                "bytes": ranked.plan.total, "fits": ranked.plan.fits,
                "tokens_per_s": ranked.plan.tokens_per_s, "kv": ranked.plan.schedule.spec,
                "weights": ranked.plan.weights.n_bytes, "fitting_types": list(ranked.fitting),
            }
            for ranked in report.ranking
        ],
        "recommended": best and best.model.id,
        "recommendation": best and {
            "model": best.model.id, "type": best.plan.weights.type, "bytes": best.plan.total,
            "command": run_command(best),
            "kv": best.plan.schedule.spec, "tokens_per_s": best.plan.tokens_per_s,
            "reaches_floor": best.fast, "floor_tokens_per_s": FLOOR,
            "headroom": headroom(memory.usable),
        },
    }  # fmt: skip


def _whole_steps(report: SystemReport) -> str:
    if not report.own_types:
        return "none; llama.cpp computes everything"
    kinds = " ".join(sorted(report.own_types))
    return f"of models in {kinds}; llama.cpp computes a part of others"


def show_system(report: SystemReport) -> None:
    """``system``: the machine line by line, then the ranking."""
    memory, cpu, size = report.memory, report.cpu, size_text
    rows = [
        ("memory", f"{size(memory.total)}, {size(memory.available)} available"),
        ("swap", f"{size(memory.swap_total)}, {size(memory.swap_free)} free"),
        ("control group", _group(report)),
        ("usable now", size(memory.usable)),
        (
            "processor",
            f"{cpu.model}: {cpu.sockets} socket{'s' * (cpu.sockets != 1)}, {cpu.cores} cores, "
            f"{cpu.threads} threads, {cpu.usable} of the cores usable",
        ),
        ("llama.cpp uses", " ".join(report.extensions.used)),
        ("leaves unused", " ".join(report.extensions.unused) or "nothing that it could use"),
        ("own kernels", kernels_text(report.kernels)),
        ("AMX int8 tiles", report.kernels.amx.text),
        ("whole steps", _whole_steps(report)),
        ("llama.cpp's layouts", _layouts(report)),
        (
            "reads memory at",
            f"{size(report.bandwidth.all_cores)}/s, one core {size(report.bandwidth.one_core)}/s",
        ),
        ("disk", f"{size(report.disk.free)} free at {report.disk.folder}"),
    ]
    if memory.rlimit is not None:
        rows.insert(3, ("address limit", size(memory.rlimit)))
    console.table(("this machine", ""), rows, left=2)
    console.answer("")
    # on a narrow terminal there would be no room for the names
    wide = console.is_wide(_WIDE)
    ranking = [
        (
            ranked.model.id if wide else ranked.model.name, ranked.plan.weights.type,
            size(ranked.plan.total), "yes" if ranked.plan.fits else "no",
            _rate(ranked.plan.tokens_per_s), ranked.plan.schedule.spec,
        )
        for ranked in report.ranking
    ]  # fmt: skip
    heads = ("model", "type", "memory", "fits", "tokens/s at most", "cache")
    console.table(heads, ranking, left=2)
    console.answer("")
    console.answer_paragraph(_recommendation(report))
    if report.recommended is not None:
        console.answer_paragraph(f"  {run_command(report.recommended)}")


def _recommendation(report: SystemReport) -> str:
    """What to run, and the rule behind it."""
    best = report.recommended
    if best is None:
        return "none of them fits in this machine's memory"
    kind = best.plan.weights.type
    room = size_text(headroom(report.memory.usable))
    rule = (
        f"the largest that leaves {room} to other programs and can reach {FLOOR:g} tokens/s"
        if best.fast
        else f"the fastest that fits; none leaves {room} to others and can reach {FLOOR:g} tokens/s"
    )
    size = size_text(best.plan.total, up=True)
    return f"recommended: {best.model.id} as {kind}, {size}: {rule}"


def run_command(best: Recommendation) -> str:
    """The command that follows a recommendation's plan."""
    plan = best.plan
    words = ["infer-os run --model", best.model.name, "--type", plan.weights.type]
    if plan.schedule.spec != "f16":
        words += ["--kv", plan.schedule.spec]
    if plan.load != "mmap":
        words += ["--load", plan.load]
    return " ".join(words)


def _layouts(report: SystemReport) -> str:
    layouts = report.layouts
    if layouts.reason:
        return f"not used: llama.cpp's AMX layout: {layouts.reason}"
    if not layouts.types:
        return "none for this processor"
    return f"{' '.join(sorted(layouts.types))}: with --load fast, where our kernels do not run"


def _group(report: SystemReport) -> str:
    group = report.memory.group
    if group is None:
        return "no limit"
    limit, used = size_text(group.limit), size_text(group.used)
    return f"{limit}, {used} in use ({group.path})"
