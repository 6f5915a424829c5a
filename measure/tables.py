"""Tables of rows, as cells of text: for a terminal and for the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infer_os.sizes import size_text

from .rows import Row, select
from .techniques import BASELINE, TECHNIQUES


@dataclass(frozen=True, slots=True)
class Table:
    """``left`` columns are text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1


def number(value: float) -> str:
    """A number with three significant digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(row: Row | None) -> str:
    """``median (first to third quartile)``; empty without a row."""
    if row is None:
        return ""
    if row.repeats == 1:
        return number(row.median)
    return f"{number(row.median)} ({number(row.low)} to {number(row.high)})"


def _one(rows: Iterable[Row], metric: str, **labels: str | int | float) -> Row | None:
    return next(iter(select(rows, metric, **labels)), None)


def all_tables(rows: Sequence[Row]) -> list[Table]:
    """Every table that the rows have data for."""
    makers = (_techniques, _start, _depths, _batches, _memory, _quality)
    return [table for maker in makers if (table := maker(rows)).rows]


def _techniques(rows: Sequence[Row]) -> Table:
    found = []
    titles = {BASELINE: "baseline"} | {t.name: t.title for t in TECHNIQUES}
    claims = {t.name: t for t in TECHNIQUES}
    for name, title in titles.items():
        ratio = _one(rows, "technique_ratio", technique=name)
        if ratio is None:
            continue
        saved = _one(rows, "technique_saved", technique=name)
        kv = _one(rows, "technique_kv_saved", technique=name)
        peak = _one(rows, "technique_peak", technique=name)
        claim = claims.get(name)
        found.append(
            (
                title + (" (projected)" if ratio.label("projected") else ""),
                f"{spread(ratio)}",
                f"{claim.speed.value:g}" if claim and claim.speed else "",
                spread(_one(rows, "technique_decode", technique=name)),
                f"{100 * saved.median:.1f} %" if saved else "",
                f"{100 * claim.memory.value:.0f} %" if claim and claim.memory else "",
                f"{100 * kv.median:.1f} %" if kv else "",
                size_text(int(peak.median)) if peak else "",
            )
        )
    columns = (
        "technique", "times as fast", "claimed", "tokens/s", "memory saved", "claimed",
        "of the KV cache", "peak",
    )  # fmt: skip
    return Table("Techniques", columns, tuple(found))


def reasons(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The claims that were not reached, and why."""
    titles = {technique.name: technique.title for technique in TECHNIQUES}
    found = []
    for row in rows:
        reason = row.label("reason")
        if reason:
            what = "speed" if row.metric == "technique_ratio" else "memory"
            found.append((f"{titles[str(row.label('technique'))]}, {what}", str(reason)))
    return found


def _start(rows: Sequence[Row]) -> Table:
    found = [(f"load ({row.label('load')})", spread(row)) for row in select(rows, "load")]
    found += [
        (f"first token of {row.label('prompt_tokens')}, KV {row.label('kv')}", spread(row))
        for row in select(rows, "first_token")
    ]
    return Table("Start", ("step", "seconds"), tuple(found))


def _depths(rows: Sequence[Row]) -> Table:
    found = []
    for decode in select(rows, "decode"):
        kv, depth = decode.labels["kv"], decode.labels["depth"]
        share = _one(rows, "bandwidth_share", kv=kv, depth=depth)
        energy = _one(rows, "energy", kv=kv, depth=depth)
        found.append(
            (
                str(kv), str(depth), spread(decode),
                spread(_one(rows, "prefill", kv=kv, depth=depth)),
                f"{100 * share.median:.0f} %" if share else "",
                *((spread(energy),) if select(rows, "energy") else ()),
            )
        )  # fmt: skip
    columns: tuple[str, ...] = (
        "KV",
        "depth",
        "decode, tokens/s",
        "prefill, tokens/s",
        "of read bandwidth",
    )
    if select(rows, "energy"):
        columns = (*columns, "J/token")
    return Table("Depth", columns, tuple(found))


def _batches(rows: Sequence[Row]) -> Table:
    found = []
    all_rows = select(rows, "batch_decode")
    for row in all_rows:
        each = row.median / int(row.labels["sequences"])
        found.append((str(row.labels["sequences"]), spread(row), number(each)))
    return Table("Sequences decoded together", ("sequences", "tokens/s", "of each"), tuple(found))


def _memory(rows: Sequence[Row]) -> Table:
    found = [
        (str(row.labels["part"]).replace("_", " "), size_text(int(row.median)))
        for row in select(rows, "memory")
    ]
    return Table("Memory", ("part", "size"), tuple(found))


def _quality(rows: Sequence[Row]) -> Table:
    found = []
    for row in select(rows, "perplexity"):
        kind, kv = row.labels["type"], row.labels["kv"]
        kl = _one(rows, "kl", type=kind, kv=kv)
        worst = _one(rows, "kl_p99", type=kind, kv=kv)
        top = _one(rows, "top1", type=kind, kv=kv)
        change = _one(rows, "perplexity_change", type=kind, kv=kv)
        bits = _one(rows, "bits_per_weight", type=kind)
        size = _one(rows, "file_bytes", type=kind)
        error = row.label("standard_error", 0.0)
        found.append(
            (
                str(kind), str(kv), f"{bits.median:.2f}" if bits else "",
                size_text(int(size.median)) if size else "",
                f"{row.median:.3f} ± {float(error):.3f}",
                f"{100 * change.median:+.2f} %" if change else "",
                f"{kl.median:.2g}" if kl else "", f"{worst.median:.2g}" if worst else "",
                f"{100 * top.median:.2f} %" if top else "", str(row.labels["tokens"]),
            )
        )  # fmt: skip
    columns = (
        "type", "KV", "bits per weight", "size", "perplexity", "change", "KL",
        "KL, 99 of 100", "same top", "tokens",
    )  # fmt: skip
    return Table("Quality", columns, tuple(found), left=2)
