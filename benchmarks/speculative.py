"""Decode speed with guesses against plain decoding, alternately in one run.

    python benchmarks/speculative.py [--type q8_0] [--kv q8_0] [--repeats 5] [--load mmap]

The bundled model writes from held-out prompts: plainly, with prompt lookup, with the bundled draft,
and with a hopeless draft (random weights of the draft's geometry); greedy and drawn. Then it goes
on with texts that repeat themselves. Prints the ratio of tokens per second to plain decoding of the
same prompt in the same turn, as median and quartiles, and how often greedy texts were the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.bundled import TARGET
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import Generation, stream_text
from infer_os.runtime.open import open_engine
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

DRAFT = TARGET.parent / "austen-draft"
HELD_OUT = TARGET.parent / "held-out.txt"


@dataclass
class Arm:
    """One way to decode: its engine, and ratios to plain decoding per turn."""

    name: str
    engine: LlamaEngine
    ratios: list[float] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    same: int = 0
    texts: int = 0


def hopeless(folder: Path) -> Path:
    """A checkpoint of the draft's geometry whose weights are noise."""
    shutil.copytree(DRAFT, folder)
    random = np.random.default_rng(3)
    for path in folder.glob("*.safetensors"):
        tensors = {
            name: (random.standard_normal(tensor.shape) * 0.05).astype(tensor.dtype)
            for name, tensor in load_file(path).items()
        }
        save_file(tensors, path)
    return folder


def write(engine: LlamaEngine, text: str, sampling: SamplingSettings, n: int) -> Generation:
    """Generate from an empty cache, so that every arm computes the prompt."""
    engine.forget()
    state = Generation()
    for _ in stream_text(engine, engine.vocab.tokenize(text), sampling, StopSettings(n), state):
        pass
    return state


def repeating(text: str, n: int) -> list[str]:
    """Prompts that already contain their continuation: a passage, and its beginning again."""
    parts = [text[at : at + 700] for at in range(0, 3000 * n, 3000)]
    return [f"{part}\n\n{part[:200]}" for part in parts]


def compare(
    arms: list[Arm], prompts: list[str], sampling: SamplingSettings, tokens: int, repeats: int
) -> None:
    """Let the arms take turns; the first is the plain one."""
    for arm in arms:
        arm.ratios.clear(), arm.speeds.clear()
        arm.same = arm.texts = 0
        write(arm.engine, prompts[0], sampling, tokens)  # measures its costs, warms up
    for turn in range(repeats):
        for prompt in prompts:
            speeds, texts = {}, {}
            order = arms[turn % len(arms) :] + arms[: turn % len(arms)]
            for arm in order:
                state = write(arm.engine, prompt, sampling, tokens)
                speeds[arm.name] = state.timings.decode_tokens_per_s
                texts[arm.name] = state.tokens
            for arm in arms:
                arm.speeds.append(speeds[arm.name])
                arm.ratios.append(speeds[arm.name] / speeds[arms[0].name])
                arm.same += texts[arm.name] == texts[arms[0].name]
                arm.texts += 1


def show(title: str, arms: list[Arm], *, greedy: bool) -> list[dict[str, object]]:
    """Print a comparison; returns its rows."""
    print(f"\n{title}")
    rows: list[dict[str, object]] = []
    for arm in arms:
        low, middle, high = np.percentile(arm.ratios, [25, 50, 75])
        line = f"  {arm.name:14} {np.median(arm.speeds):8.1f} tokens/s  {middle:.3f} " \
               f"(quartiles {low:.3f} to {high:.3f})"  # fmt: skip
        if greedy:
            line += f"  same text {arm.same} of {arm.texts}"
        row = {"what": title, "arm": arm.name, "ratio": middle, "low": low, "high": high}
        if arm.engine.speculation is not None:
            report = arm.engine.speculation.report()
            row |= {"drafted": report.drafted, "accepted": report.accepted,
                    "mean_length": report.mean_length}  # fmt: skip
            single = report.step_s[1]
            steps = " ".join(f"{n}:{s / single:.2f}" for n, s in report.step_s.items())
            line += f"\n{'':17}{report.accepted} of {report.drafted} right, " \
                    f"{report.mean_length:.2f} tokens a verification; " \
                    f"steps by size {steps}"  # fmt: skip
        print(line)
        rows.append(row)
    return rows


def main() -> None:
    """Make the models, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--type", default="q8_0")
    parser.add_argument("--kv", default="q8_0")
    parser.add_argument("--load", default="mmap")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-native", action="store_true", help="llama.cpp's own kernels")
    parser.add_argument("--rows", type=Path, help="append the figures to this JSON lines file")
    arguments = parser.parse_args()
    held_out = HELD_OUT.read_text()
    prompts = [held_out[at : at + 400] for at in range(0, 5000 * arguments.prompts, 5000)]
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        files = {}
        for name, source in (
            ("target", TARGET), ("draft", DRAFT), ("hopeless", hopeless(folder / "noise")),
        ):  # fmt: skip
            files[name] = folder / f"{name}.gguf"
            convert(ConvertSettings(source, files[name], arguments.type))
        drafts = {"plain": "none", "lookup": "lookup", "bundled draft": str(files["draft"]),
                  "hopeless draft": str(files["hopeless"])}  # fmt: skip
        options = EngineSettings(
            1024, arguments.load, arguments.threads, arguments.kv, native=not arguments.no_native
        )

        def opened(draft: str) -> LlamaEngine:
            return stack.enter_context(open_engine(files["target"], replace(options, draft=draft)))

        arms = [Arm(name, opened(draft)) for name, draft in drafts.items()]
        # what the draft costs and gains without lookup
        for name in ("bundled", "hopeless"):
            engine = opened(drafts[f"{name} draft"])
            assert engine.speculation is not None
            engine.speculation.runners = engine.speculation.runners[1:]
            arms.append(Arm(f"{name} alone", engine))
        kinds = {"greedy": SamplingSettings(temperature=0), "drawn at 0.8": SamplingSettings()}
        print(f"bundled model {arguments.type}, KV {arguments.kv}, load {arguments.load}, "
              f"{arguments.threads} threads, {arguments.tokens} tokens from each of "
              f"{arguments.prompts} prompts, {arguments.repeats} turns; kernels: "
              f"{arms[0].engine.info.kernels.variant or 'of llama.cpp'}")  # fmt: skip
        rows = []
        for kind, sampling in kinds.items():
            greedy = sampling.temperature == 0
            compare(arms, prompts, sampling, arguments.tokens, arguments.repeats)
            rows += show(f"held-out prompts, {kind}", arms, greedy=greedy)
            again = repeating(held_out, arguments.prompts)
            compare(arms, again, sampling, arguments.tokens, arguments.repeats)
            rows += show(f"texts that repeat themselves, {kind}", arms, greedy=greedy)
    if arguments.rows:
        with arguments.rows.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
