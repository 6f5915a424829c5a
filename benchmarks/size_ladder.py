"""The loss at every size: ``convert --bits`` against all that llama.cpp writes, in one command.

    python benchmarks/size_ladder.py [--model FOLDER --calibration TEXT --text TEXT --other TEXT]
        [--bits 2.6 3 3.25 ...] [--windows 24] [--speed 5] [--ik PYTHON] [--rows FILE] [--plot FILE]
        [--page docs/quality.md [--part NAME]]

Without texts, the bundled held-out text calibrates with its first seven documents and its last five
are measured; ``other`` is a text of another kind, by default this project's guides. llama.cpp's
files are those of ``llama_model_quantize``, which llama-quantize calls, with the importance matrix
of the same text; those of ik_llama.cpp's own types, if ``--ik`` names a Python that has the package
ik-llama-cpp-python, are made and measured by its code. KL divergence is in nats per token from the
model's own F32 weights, with the interval of 95 of 100 means of windows drawn again. For each size
the best of their files that is no larger is named, and the ratio of the two losses. A second table
has each file's perplexity, the share of tokens whose likeliest is the same, and how many tokens per
second our kernels decode, with the files taking turns (``--speed`` rounds). ``--page`` puts tables
and plot into a page, between the two comments of a part; ``--rows`` keeps the figures, and goes on
with a file that has some.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ik_llama import TYPES as IK_TYPES
from ik_llama import IkLlama
from ladder import bundled_texts, divergence, interval, quantize_by_llama

from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.mixture import WeightBudget
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.statistics import read_statistics
from infer_os.native.context import Context, ContextParams
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import WindowSettings

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
_STEPS = 48  # decoded by each file in a round


def main() -> None:
    """Convert, measure, print."""
    given = _arguments()
    rows = [json.loads(line) for line in given.rows.open()] if given.rows.exists() else []
    known = {row["name"] for row in rows}
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        for row in measure(given, folder, known):
            print(json.dumps(row), file=sys.stderr, flush=True)
            rows.append(row)
            with given.rows.open("a") as file:
                print(json.dumps(row), file=file)
    lines = [*table(rows), "", *more(rows)]
    print("\n".join(lines))
    if given.plot:
        draw(rows, given.plot)
    if given.page:
        into_page(given.page, given.part, lines, given.plot)


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
    parser.add_argument("--page", type=Path, help="a page to put tables and plot into")
    parser.add_argument("--part", default="", help="the part of the page, if it has several")
    parser.add_argument("--ik", type=Path, help="a Python that has ik-llama-cpp-python")
    parser.add_argument("--speed", type=int, default=5, help="rounds of decoding; 0 for none")
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
    full, kept = place / "f32.gguf", place / "statistics"
    convert(ConvertSettings(given.model, full, "f32", threads=given.threads, force=True))
    first = ConvertSettings(
        given.model, place / "first.gguf", threads=given.threads, force=True,
        budget=WeightBudget(8.5),
    )  # fmt: skip
    options = CalibrationSettings(calibration, None, "gptq", kept)
    convert_calibrated(first, options, lambda step: print(step, file=sys.stderr))
    importance = read_statistics(kept).importance

    ik = IkLlama(given.ik, place, given.threads) if given.ik else None
    n_weights = 8 * read_gguf_header(full).weight_bytes / read_gguf_header(full).bits_per_weight

    def row(name: str, who: str, target: Path, **more: Any) -> dict[str, Any]:
        found = {"name": name, "who": who, **more}
        if who == "ik_llama.cpp":  # types that only it knows
            # tensors of equal headers in all files: what else a file has is that of the F32 file
            rest = full.stat().st_size - read_gguf_header(full).weight_bytes
            found["bytes"] = target.stat().st_size - rest
            found["bits"] = 8 * found["bytes"] / n_weights
        else:
            header = read_gguf_header(target)
            found |= {"bytes": header.weight_bytes, "bits": header.bits_per_weight}
        for kind, words in texts.items():
            if ik and who == "ik_llama.cpp":
                windows = WindowSettings(given.threads, given.window, given.windows)
                result = ik.divergence(full, target, words, windows)
            else:
                result = divergence(full, target, words, given)
            low, high = interval(result, given.window)
            found |= {f"kl_{kind}": result.mean_kl, f"low_{kind}": low, f"high_{kind}": high,
                      f"top1_{kind}": result.top1, f"perplexity_{kind}": result.candidate.value,
                      }  # fmt: skip
        return found

    files: dict[str, Path] = {}
    for name in ("q4_0", "q8_0"):
        path = files[f"plain {name}"] = place / f"plain-{name}.gguf"
        if f"plain {name}" not in known or not path.exists():
            convert(replace(first, output=path, type=name, budget=None))
            yield row(f"plain {name}", "plain", path)
    for bits in given.bits:
        path = files[f"--bits {bits:g}"] = place / f"bits-{bits:g}.gguf"
        if f"--bits {bits:g}" not in known or not path.exists():
            budget = WeightBudget(bits)
            convert(replace(first, output=path, budget=budget, statistics=kept))
            yield row(f"--bits {bits:g}", "ours", path, asked=bits)
    for name, number in _LLAMA.items():
        path = files[name] = place / f"llama-{name}.gguf"
        if name not in known or not path.exists():
            path.unlink(missing_ok=True)
            quantize_by_llama(full, path, number, importance, given.threads)
            yield row(name, "llama.cpp", path)
    for name in IK_TYPES if ik else ():
        if f"ik {name}" not in known:
            path = place / f"ik-{name}.gguf"
            ik.quantize(full, path, name, importance)
            yield row(f"ik {name}", "ik_llama.cpp", path)
    for name, rates in speeds(files, given).items():
        yield {"name": name, "who": "speed", "rates": rates}


def speeds(files: dict[str, Path], given: argparse.Namespace) -> dict[str, list[float]]:
    """How many tokens per second our kernels decode with each file; the files take turns."""
    rates: dict[str, list[float]] = {name: [] for name in files}
    for i in range(given.speed):
        for name in random.Random(i).sample(list(files), len(files)):
            params = ContextParams(2 * _STEPS, given.threads)
            with LlamaModel(files[name], native=True) as model, Context(model, params) as context:
                for position in range(2 * _STEPS):
                    if position == _STEPS:
                        start = time.perf_counter()
                    context.decode([position + 1], position, outputs=1)
                    context.logits()
                rates[name].append(_STEPS / (time.perf_counter() - start))
    return rates


def _other(given: argparse.Namespace) -> str:
    if given.other is not None:
        return str(given.other.read_text("utf-8"))
    pages = sorted((_ROOT / "docs").glob("*.md"))
    return "\n".join(page.read_text("utf-8") for page in pages if page.name != "quality.md")


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per size of ours, with the best of llama.cpp that is no larger."""
    yield ("| file | bytes | bits per weight | KL, on-domain | best other file of at most that "
           "size | its KL | ratio | KL, off-domain | the best other's | ratio |")  # fmt: skip
    yield "|---" * 10 + "|"
    others = [row for row in rows if row["who"] in ("llama.cpp", "ik_llama.cpp")]
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


def more(rows: list[dict[str, Any]]) -> Iterator[str]:
    """A line per file: perplexity, agreement and speed."""
    rates = {row["name"]: row["rates"] for row in rows if row["who"] == "speed"}
    yield "| file | bits per weight | perplexity | same top | tokens/s |"
    yield "|---" * 5 + "|"
    for row in sorted((row for row in rows if "bits" in row), key=lambda row: row["bits"]):
        cells = [f"`{row['name']}`", f"{row['bits']:.2f}", f"{row['perplexity_on']:.2f}",
                 f"{100 * row['top1_on']:.2f} %"]  # fmt: skip
        of_this = rates.get(row["name"])
        if of_this:
            low, middle, high = np.quantile(of_this, (0.25, 0.5, 0.75))
            cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
        else:
            cells.append("")
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
        for who, color, style in (("ours", "#2b6cb0", "o-"), ("llama.cpp", "#dd6b20", "s"),
                                  ("ik_llama.cpp", "#2f855a", "^")):  # fmt: skip
            chosen = sorted((r for r in rows if r["who"] == who), key=lambda r: r["bits"])
            if not chosen:
                continue
            bits, kl = [r["bits"] for r in chosen], [r[f"kl_{kind}"] for r in chosen]
            spread = [[r[f"kl_{kind}"] - r[f"low_{kind}"] for r in chosen],
                      [r[f"high_{kind}"] - r[f"kl_{kind}"] for r in chosen]]  # fmt: skip
            label = "infer-os convert --bits" if who == "ours" else f"{who}, importance matrix"
            place.errorbar(bits, kl, spread, fmt=style, color=color, label=label, markersize=4)
            if who != "ours":
                for row in chosen:
                    name, at = row["name"].removeprefix("ik "), (row["bits"], row[f"kl_{kind}"])
                    place.annotate(name, at, (4, 3), textcoords="offset points", fontsize=6.5)
        place.set(yscale="log", xlabel="bits per weight", title=title)
        place.grid(alpha=0.3)
    places[0].set_ylabel("KL divergence, nats per token")
    places[0].legend(frameon=False)
    figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)


def into_page(page: Path, part: str, lines: list[str], plot: Path | None) -> None:
    """Replace what lies between the two comments of a part of a page."""
    text = page.read_text("utf-8")
    begin, end = (f"<!-- {' '.join(['size_ladder.py:', *part.split(), end])} -->"
                  for end in ("begin", "end"))  # fmt: skip
    image = []
    if plot is not None:
        where = plot.resolve().relative_to(page.resolve().parent).as_posix()
        image = [f"![KL divergence over bits per weight]({where})", ""]
    new = "\n".join([begin, "", *image, *lines, "", end])
    changed, n = re.subn(f"{begin}.*?{end}", lambda _: new, text, flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"{page}: has no {begin} and {end}")
    page.write_text(changed, "utf-8")


if __name__ == "__main__":
    main()
