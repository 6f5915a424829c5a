"""The loss at every size: ``convert --bits`` against all that llama.cpp writes, in one command.

    python benchmarks/size_ladder.py [--model FOLDER --calibration TEXT --text TEXT --other TEXT]
        [--bits 2.6 3 3.25 ...] [--windows 24] [--rows FILE] [--plot FILE] [--page docs/quality.md]

Without texts, the bundled held-out text calibrates with its first seven documents and its last five
are measured; ``other`` is a text of another kind, by default this project's guides. llama.cpp's
files are those of ``llama_model_quantize``, which llama-quantize calls, with the importance matrix
of the same text. KL divergence is in nats per token from the model's own F32 weights, with the
interval of 95 of 100 means of windows drawn again. For each size the best llama.cpp file that is
no larger is named, and the ratio of the two losses. ``--page`` puts table and plot into a page,
between its two comments; ``--rows`` keeps the figures, and goes on with a file that has some.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ladder import bundled_texts, divergence, interval, quantize_by_llama

from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.mixture import WeightBudget
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.statistics import read_statistics
from infer_os.native.gguf_file import read_gguf_header

_ROOT = Path(__file__).parent.parent
_BITS = (2.6, 2.7, 2.85, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.6)
# llama.cpp's names and LLAMA_FTYPE numbers
_LLAMA = {
    "IQ1_S": 24, "IQ1_M": 31, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 28, "IQ2_M": 29,
    "Q2_K_S": 21, "Q2_K": 10,
    "IQ3_XXS": 23, "IQ3_XS": 22, "IQ3_S": 26, "IQ3_M": 27, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "IQ4_XS": 30, "IQ4_NL": 25, "Q4_0": 2, "Q4_K_S": 14, "Q4_K_M": 15,
    "Q5_0": 8, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
}  # fmt: skip
_BEGIN, _END = "<!-- size_ladder.py: begin -->", "<!-- size_ladder.py: end -->"


def main() -> None:
    """Convert, measure, print."""
    given = _arguments()
    rows = [json.loads(line) for line in given.rows.open()] if given.rows.exists() else []
    known = {row["name"] for row in rows}
    with tempfile.TemporaryDirectory() as place:
        for row in measure(given, given.folder or Path(place), known):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
            with given.rows.open("a") as file:
                print(json.dumps(row), file=file)
    lines = list(table(rows))
    print("\n".join(lines))
    if given.plot:
        draw(rows, given.plot)
    if given.page:
        into_page(given.page, lines, given.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=_ROOT / "models/bundled/austen-6m")
    parser.add_argument("--calibration", type=Path, help="a text to calibrate with")
    parser.add_argument("--text", type=Path, help="a text of that kind to measure with")
    parser.add_argument("--other", type=Path, help="a text of another kind to measure with")
    parser.add_argument("--bits", type=float, nargs="+", default=_BITS)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, default=Path("size_ladder.jsonl"))
    parser.add_argument("--folder", type=Path, help="a folder for statistics and files, to go on")
    parser.add_argument("--plot", type=Path, help="a file for the plot (.svg or .png)")
    parser.add_argument("--page", type=Path, help="a page to put table and plot into")
    given = parser.parse_args()
    if (given.calibration is None) != (given.text is None):
        parser.error("give both --calibration and --text or none")
    return given


def measure(given: argparse.Namespace, place: Path, known: set[str]) -> Iterator[dict[str, Any]]:
    """A record per file that is not known yet."""
    calibration, text = given.calibration, given.text
    if calibration is None:
        calibration, text = bundled_texts(place)
    texts = {"on": text.read_text("utf-8"), "off": _other(given)}
    full, kept, target = place / "f32.gguf", place / "statistics", place / "it.gguf"
    convert(ConvertSettings(given.model, full, "f32", threads=given.threads, force=True))
    settings = ConvertSettings(given.model, target, threads=given.threads, force=True)
    first = replace(settings, budget=WeightBudget(8.5))
    options = CalibrationSettings(calibration, None, "gptq", kept)
    convert_calibrated(first, options, lambda step: print(step, file=sys.stderr))
    importance = read_statistics(kept).importance

    def row(name: str, who: str, **more: Any) -> dict[str, Any]:
        header = read_gguf_header(target)
        found = {"name": name, "who": who, "bytes": header.weight_bytes,
                 "bits": header.bits_per_weight, **more}  # fmt: skip
        for kind, words in texts.items():
            result = divergence(full, target, words, given)
            low, high = interval(result, given.window)
            found |= {f"kl_{kind}": result.mean_kl, f"low_{kind}": low, f"high_{kind}": high,
                      f"top1_{kind}": result.top1}  # fmt: skip
        return found

    for name in ("q4_0", "q8_0"):
        if f"plain {name}" not in known:
            convert(replace(settings, type=name))
            yield row(f"plain {name}", "plain")
    for bits in given.bits:
        if f"--bits {bits:g}" not in known:
            convert(replace(settings, budget=WeightBudget(bits), statistics=kept))
            yield row(f"--bits {bits:g}", "ours", asked=bits)
    for name, number in _LLAMA.items():
        if name not in known:
            target.unlink(missing_ok=True)
            quantize_by_llama(full, target, number, importance, given.threads)
            yield row(name, "llama.cpp")


def _other(given: argparse.Namespace) -> str:
    if given.other is not None:
        return str(given.other.read_text("utf-8"))
    pages = sorted((_ROOT / "docs").glob("*.md"))
    return "\n".join(page.read_text("utf-8") for page in pages if page.name != "quality.md")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per size of ours, with the best of llama.cpp that is no larger."""
    yield ("| file | bytes | bits per weight | KL, on-domain | best llama.cpp file of at most that "
           "size | its KL | ratio | KL, off-domain | llama.cpp's | ratio |")  # fmt: skip
    yield "|---" * 10 + "|"
    others = [row for row in rows if row["who"] == "llama.cpp"]
    plain = next(row for row in rows if row["name"] == "plain q4_0")
    for row in [plain, *(row for row in rows if row["who"] == "ours")]:
        # a size that was asked for, since ours may be a little smaller
        most = row["bytes"] * row.get("asked", row["bits"]) / row["bits"]
        fitting = [other for other in others if other["bytes"] <= max(most, row["bytes"])]
        cells = [f"`{row['name']}`", f"{row['bytes']:,}", f"{row['bits']:.2f}"]
        for kind in ("on", "off"):
            cells.append(_with_interval(row, kind))
            if not fitting:
                cells += ["none", "", ""] if kind == "on" else ["", ""]
                continue
            best = min(fitting, key=lambda other: other[f"kl_{kind}"])
            shown = f"{best['name']}, {best['bits']:.2f} bits"
            cells += (
                [shown, _with_interval(best, kind)]
                if kind == "on"
                else [f"{best['name']}: {_with_interval(best, kind)}"]
            )
            cells.append(f"{row[f'kl_{kind}'] / best[f'kl_{kind}']:.2f}")
        yield "| " + " | ".join(cells) + " |"


def _with_interval(row: dict[str, Any], kind: str) -> str:
    kl, low, high = (row[f"{what}_{kind}"] for what in ("kl", "low", "high"))
    return f"{kl:.2e} ({low:.2e} to {high:.2e})"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """KL over bytes: a line for ours, a point with its name for each file of llama.cpp."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, places = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for place, kind, title in zip(
        places, ("on", "off"), ("text like the calibration's", "text of another kind"), strict=True
    ):
        for who, color, style in (("ours", "#2b6cb0", "o-"), ("llama.cpp", "#dd6b20", "s")):
            chosen = sorted((r for r in rows if r["who"] == who), key=lambda r: r["bits"])
            bits, kl = [r["bits"] for r in chosen], [r[f"kl_{kind}"] for r in chosen]
            spread = [[r[f"kl_{kind}"] - r[f"low_{kind}"] for r in chosen],
                      [r[f"high_{kind}"] - r[f"kl_{kind}"] for r in chosen]]  # fmt: skip
            label = "infer-os convert --bits" if who == "ours" else "llama.cpp, importance matrix"
            place.errorbar(bits, kl, spread, fmt=style, color=color, label=label, markersize=4)
            if who != "ours":
                for row in chosen:
                    place.annotate(row["name"], (row["bits"], row[f"kl_{kind}"]), (4, 3),
                                   textcoords="offset points", fontsize=6.5)  # fmt: skip
        place.set(yscale="log", xlabel="bits per weight", title=title)
        place.grid(alpha=0.3)
    places[0].set_ylabel("KL divergence, nats per token")
    places[0].legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def into_page(page: Path, lines: list[str], plot: Path | None) -> None:
    """Replace what lies between the two comments of a page."""
    text = page.read_text("utf-8")
    image = []
    if plot is not None:
        where = plot.resolve().relative_to(page.resolve().parent).as_posix()
        image = [f"![KL divergence over bits per weight]({where})", ""]
    new = "\n".join([_BEGIN, "", *image, *lines, "", _END])
    changed, n = re.subn(f"{_BEGIN}.*?{_END}", lambda _: new, text, flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"{page}: has no {_BEGIN} and {_END}")
    page.write_text(changed, "utf-8")


if __name__ == "__main__":
    main()
