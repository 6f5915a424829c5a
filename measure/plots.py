"""Plots of rows, with matplotlib (the extra ``infer-os[plot]``).

Goes in: rows. Comes out: a figure for everything that the rows cover, and no others.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from infer_os.runtime.errors import BenchError

from .rows import Row, select
from .techniques import TECHNIQUES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1f2933", "#6b7785", "#e4e8ec"
_COLORS = ("#2b6cb0", "#dd6b20", "#2f855a", "#b83280", "#6b46c1", "#975a16")
#: Light enough for quartiles drawn on it.
_BAR = "#8fbbe4"
_CLAIM = "#c53030"
#: Where a name may be put next to its point, best first: points to the right and up, and alignment.
_BESIDE = (
    (7, -3, "left"), (-7, -3, "right"), (0, 7, "center"), (0, -14, "center"), (5, 5, "left"),
    (-5, -12, "right"), (5, -12, "left"), (-5, 5, "right"), (0, -18, "center"), (0, 12, "center"),
)  # fmt: skip
_SIZE = (7.2, 3.9)
_RC = {
    "font.size": 10, "axes.edgecolor": _MUTED, "axes.labelcolor": _INK, "text.color": _INK,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "axes.spines.top": False,
    "axes.spines.right": False, "svg.fonttype": "none", "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure and what it shows."""

    title: str
    figure: Figure


def check_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        BenchError: matplotlib is not installed; names the extra.
    """
    if find_spec("matplotlib") is None:
        raise BenchError('plots need matplotlib: pip install "infer-os[plot]"')


@contextmanager
def _style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def all_plots(rows: Sequence[Row]) -> list[Plot]:
    """Every plot that the rows have data for.

    Raises:
        BenchError: matplotlib is not installed.
    """
    check_matplotlib()
    makers: tuple[tuple[str, Callable[[Axes, Sequence[Row]], bool]], ...] = (
        ("Techniques: times as fast as the baseline", _draw_speed),
        ("Techniques: memory saved against the baseline", _draw_saved),
        ("Decode speed over depth", _draw_depth),
        ("Throughput over sequences decoded together", _draw_batches),
        ("Quality over size", _draw_quality),
        ("KV cache over tokens, with its stages", _draw_growth),
    )
    plots = []
    for title, draw in makers:
        with _style():
            figure, axes = _new_figure()
            if draw(axes, rows):
                axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
                plots.append(Plot(title, figure))
    return plots


def svg(plot: Plot) -> bytes:
    """A figure as SVG; its text stays text."""
    return _saved(plot, "svg", metadata={"Date": None})


def png(plot: Plot) -> bytes:
    """A figure as PNG."""
    return _saved(plot, "png", dpi=130)


def _saved(plot: Plot, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with _style():
        plot.figure.savefig(buffer, format=form, facecolor="white", **options)
    return buffer.getvalue()


def _new_figure() -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _figure(axes: Axes) -> Figure:
    """The figure of axes that :func:`_new_figure` made."""
    return cast("Figure", axes.figure)


def _grid(axes: Axes, which: str = "y") -> None:
    axes.grid(axis="x" if which == "x" else "y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


# ---- techniques


def _draw_speed(axes: Axes, rows: Sequence[Row]) -> bool:
    found = _technique_bars(rows, "technique_ratio")
    if not found:
        return False
    claims = [t.speed.value if t.speed else None for t, _ in found]
    _bars(axes, found, claims, "{:.2f}×")
    axes.axvline(1, color=_MUTED, linewidth=1)
    axes.set_xlabel("decode speed, times the baseline's")
    return True


def _draw_saved(axes: Axes, rows: Sequence[Row]) -> bool:
    found = _technique_bars(rows, "technique_saved", scale=100)
    if not found:
        return False
    claims = [100 * t.memory.value if t.memory else None for t, _ in found]
    alone = select(rows, "technique_kv_saved")
    for place, (technique, _) in enumerate(found):
        for row in (row for row in alone if row.labels["technique"] == technique.name):
            if row.median > 0:
                axes.plot(100 * row.median, place, "D", mfc="white", mec=_COLORS[0], ms=6)
    axes.plot([], [], "D", mfc="white", mec=_COLORS[0], ms=6, label="of the KV cache alone")
    _bars(axes, found, claims, "{:.0f} %")
    axes.axvline(0, color=_MUTED, linewidth=1)
    axes.set_xlabel("peak memory saved, % of the baseline's peak")
    return True


def _technique_bars(
    rows: Sequence[Row], metric: str, scale: float = 1
) -> list[tuple[Any, tuple[float, float, float]]]:
    found = []
    for technique in TECHNIQUES:
        for row in select(rows, metric, technique=technique.name)[:1]:
            found.append((technique, (scale * row.low, scale * row.median, scale * row.high)))
    return found


def _bars(
    axes: Axes,
    found: Sequence[tuple[Any, tuple[float, float, float]]],
    claims: Sequence[float | None],
    form: str,
) -> None:
    """Horizontal bars with quartiles, and a grey mark at each claim."""
    places = range(len(found))
    middles = [values[1] for _, values in found]
    errors = [
        [middle - low for _, (low, middle, _) in found],
        [high - middle for _, (_, middle, high) in found],
    ]
    axes.barh(
        places, middles, height=0.55, color=_BAR, xerr=errors,
        error_kw={"ecolor": _INK, "elinewidth": 1},
    )  # fmt: skip
    for place, claim in zip(places, claims, strict=True):
        if claim is not None:
            axes.plot([claim, claim], [place - 0.36, place + 0.36], color=_CLAIM, linewidth=2)
    axes.plot([], [], color=_CLAIM, linewidth=2, label="claimed by the guide")
    # below the plot, clear of bars and title
    _figure(axes).legend(loc="outside lower right", fontsize=9, ncols=2)
    reach = max([*middles, *(c for c in claims if c is not None), 0.0])
    low = min([*middles, 0.0])
    axes.set_xlim(low - 0.08 * (reach - low) if low < 0 else 0, reach + 0.22 * (reach - low))
    for place, (_, (_, middle, high)), claim in zip(places, found, claims, strict=True):
        end = max(high, 0.0)
        if claim is not None and end < claim < end + 0.12 * (reach - low):
            end = claim  # keep figures off the marks
        axes.annotate(
            form.format(middle), (end, place), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_yticks(list(places), [technique.title for technique, _ in found], color=_INK)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    _grid(axes, "x")


# ---- lines


def _draw_depth(axes: Axes, rows: Sequence[Row]) -> bool:
    decode = select(rows, "decode")
    names = list(dict.fromkeys(str(row.labels["kv"]) for row in decode))
    if len({row.labels["depth"] for row in decode}) < 2:
        return False
    for color, name in zip(_cycle(names), names, strict=True):
        mine = select(decode, "decode", kv=name)
        depths = [float(row.labels["depth"]) for row in mine]
        axes.plot(depths, [row.median for row in mine], "o-", color=color, label=name, ms=4)
        axes.fill_between(
            depths, [row.low for row in mine], [row.high for row in mine], color=color, alpha=0.15,
            linewidth=0,
        )  # fmt: skip
    axes.set_xlabel("tokens held")
    axes.set_ylabel("decode, tokens/s")
    axes.set_ylim(bottom=0)
    axes.legend(title="KV cache", fontsize=9)
    _grid(axes)
    return True


def _draw_batches(axes: Axes, rows: Sequence[Row]) -> bool:
    found = select(rows, "batch_decode")
    if len(found) < 2:
        return False
    sizes = [float(row.labels["sequences"]) for row in found]
    axes.plot(sizes, [row.median for row in found], "o-", color=_COLORS[0], ms=4)
    axes.fill_between(
        sizes, [row.low for row in found], [row.high for row in found], color=_COLORS[0],
        alpha=0.15, linewidth=0,
    )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{n:.0f}" for n in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sequences decoded together")
    axes.set_ylabel("all together, tokens/s")
    _grid(axes)
    return True


def _draw_quality(axes: Axes, rows: Sequence[Row]) -> bool:
    """KL against bits per weight, for the first cache that was evaluated."""
    kl = select(rows, "kl")
    if not kl:
        return False
    kv = kl[0].labels["kv"]
    points = []
    for row in select(kl, "kl", kv=kv):
        bits = select(rows, "bits_per_weight", type=row.labels["type"])
        if bits and row.median > 0:
            points.append((bits[0].median, row.median, str(row.labels["type"])))
    if len(points) < 2:
        return False
    points.sort()
    axes.plot([p[0] for p in points], [p[1] for p in points], "o", color=_COLORS[0], ms=5)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = [b for b in (2, 3, 4, 5, 6, 8, 12, 16, 32) if _within(b, points)]
    axes.set_xticks(ticks, [str(b) for b in ticks])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("bits per weight")
    axes.set_ylabel(f"KL from the reference, nats per token\n(KV {kv}; lower is better)")
    _grid(axes)
    _name_points(axes, points)
    return True


def _name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each name next to its point, away from other points and names."""
    from matplotlib.transforms import Bbox

    # limits and layout must be final before anything can be measured
    _figure(axes).draw_without_rendering()
    down = sorted(points, key=lambda point: -point[1])
    centers = axes.transData.transform([(x, y) for x, y, _ in down])
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in centers]
    for own, (x, y, name) in enumerate(down):
        label = axes.annotate(name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=9)
        others = [box for i, box in enumerate(taken) if i != own]

        def covered(place: tuple[int, int, str], label: Any = label, others: Any = others) -> int:
            label.xyann, side = place[:2], place[2]
            label.set_horizontalalignment(side)
            return int(label.get_window_extent().count_overlaps(others))

        covered(min(_BESIDE, key=covered))  # the first of the best
        taken.append(label.get_window_extent())


def _within(bits: float, points: Sequence[tuple[float, float, str]]) -> bool:
    return points[0][0] * 0.9 <= bits <= points[-1][0] * 1.1


def _draw_growth(axes: Axes, rows: Sequence[Row]) -> bool:
    found = select(rows, "kv_memory")
    if len(found) < 2 or not any(row.median for row in found):
        return False
    names = list(dict.fromkeys(str(row.labels["kv"]) for row in found))
    for color, name in zip(_cycle(names), names, strict=True):
        mine = select(found, "kv_memory", kv=name)
        tokens = [float(row.labels["tokens"]) for row in mine]
        values = [row.median / 2**20 for row in mine]
        axes.step(tokens, values, where="pre", color=color, label=name, linewidth=1.8)
        stages = [str(row.labels["stage"]) for row in mine]
        changes = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
        for i in changes:
            axes.annotate(
                f"to {stages[i]}", (tokens[i - 1], max(values[i - 1 : i + 1])), xytext=(3, 3),
                textcoords="offset points", fontsize=8, color=color,
            )  # fmt: skip
    axes.set_xlabel("tokens held")
    axes.set_ylabel("KV cache, MiB")
    # room above the lines for the legend
    axes.set_ylim(0, (1.15 + 0.12 * len(names)) * max(row.median for row in found) / 2**20)
    axes.legend(title="KV cache", fontsize=9, loc="upper left")
    _grid(axes)
    return True


def _cycle(names: Sequence[str]) -> list[str]:
    return [_COLORS[i % len(_COLORS)] for i in range(len(names))]
