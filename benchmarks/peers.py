"""Decode and prefill speed side by side with other programs, alternately in one run.

    python benchmarks/peers.py --llama-bench DIR/llama-bench
        --python ctranslate2=VENV/bin/python --python openvino=VENV/bin/python
        [--geometry gpt-j-6B --layers 4] [--types q8_0,q4_0] [--prompt 512] [--tokens 32]
        [--work DIR] [--rounds 7] [--rows FILE]

A checkpoint of random weights and real geometry is made once. infer-os converts it to each type;
transformers (float32, bfloat16) reads it, CTranslate2 (int8) and OpenVINO (int8, int4) convert it,
each by its own means, in a separate process and in the Python that --python names: PATH alone is
tried for every program, PROGRAM=PATH for that one (their versions of transformers exclude each
other: CTranslate2's converters want 4.57, optimum-intel 5.5). The first that has the program runs
it. llama-bench and ik_llama.cpp (the package ik-llama-cpp-python; ``--python ik_llama=PATH``) run
our own files. What is not installed is left out by name. With --work, what
was made and converted stays there for the next run.

All sides: the same prompts, threads and count of tokens, decoded after the prompt; greedy; a prompt
is timed until its first token, and computed again in every round. There is one sequence, or
--parallel at once, with a prompt each: then prompts are timed until all have their first token, and
decoding from then on until the first sequence ends, so that each of its steps has all of them.
Prints bytes, and tokens per second of each side (of all sequences together), then ours over theirs
as median and quartiles over the rounds, if both have weights of the same bits; transformers, which
has only floats here, with every type.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from peer_worker import Round, Sizes
from random_model import GEOMETRIES, make_folder

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.measure.rows import Measurement, json_lines, make_place, make_rows
from infer_os.native.library import llama_version
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Record
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import PlainSource
from infer_os.runtime.plan.machine import read_cpu
from infer_os.runtime.settings import LOADS, EngineSettings, SamplingSettings, StopSettings

_WORKER = str(Path(__file__).with_name("peer_worker.py"))
#: The kinds of peer_worker.py, and whether they convert the checkpoint first.
_PEERS = {
    "transformers-float32": False,
    "transformers-bfloat16": False,
    "ctranslate2-int8": True,
    "openvino-int8": True,
    "openvino-int4": True,
}
#: The next side starts when the threads of the last have stopped waiting for more.
_REST_S = 0.5


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that take turns: its name, a round of it, bytes of its weights, versions."""

    name: str
    run: Round
    weights_bytes: int
    versions: str

    @property
    def type(self) -> str:
        """Of the weights, as the program names it."""
        return self.name.replace(" ", "-").rpartition("-")[2]


def our_round(engine: LlamaEngine, sizes: Sizes) -> Round:
    """Greedy steps through our token loop."""
    (prompt,) = sizes.prompts()

    def run() -> tuple[float, float]:
        source = PlainSource(engine, engine.new_sampler(SamplingSettings(temperature=0)))
        engine.forget()
        started = time.perf_counter()
        source.start(prompt)
        drawn = [source.first()]
        middle = time.perf_counter()
        for _ in range(sizes.n):
            drawn = source.advance(drawn[-1], 1)
        seconds = middle - started, time.perf_counter() - middle
        source.close()
        return seconds

    return run


def our_batch_round(engine: BatchEngine, sizes: Sizes) -> Round:
    """Greedy sequences through our batch engine; decoding counts from the step in which all have
    begun to the last one in which all draw, as for the peers.
    """
    records = [
        Record(i, i + 1, SamplingSettings(temperature=0), StopSettings(sizes.n + 1), "-")
        for i in range(sizes.parallel)
    ]
    prompts = [tuple(prompt) for prompt in sizes.prompts()]

    def run() -> tuple[float, float]:
        engine.restart()
        started = time.perf_counter()
        for record, prompt in zip(records, prompts, strict=True):
            engine.submit(record, prompt=prompt)
        full, n_drawn, going = [], 0, True
        while going:
            going = engine.step()
            n_new = engine.statistics.completion_tokens - n_drawn
            n_drawn += n_new
            if n_new == sizes.parallel:
                full.append(time.perf_counter())
        if len(full) < 2 or n_drawn != (sizes.n + 1) * sizes.parallel:
            raise SystemExit(
                f"infer-os drew {n_drawn} tokens, {len(full)} times of all sequences at once: a "
                "sequence ended early, or before the last began; try another --prompt or --tokens"
            )
        engine.take()
        return full[0] - started, (full[-1] - full[0]) * sizes.n / (len(full) - 1)

    return run


def llama_round(program: Path, gguf: Path, sizes: Sizes) -> Round:
    """llama-bench for the prompt, then for tokens after as long a one; it warms up by itself."""
    command = [str(program), "-m", str(gguf), "-t", str(sizes.threads), "-r", "1", "-o", "json"]

    def seconds(p: int, g: int, depth: int) -> float:
        what = ["-p", str(p), "-n", str(g), "-d", str(depth)]
        done = subprocess.run([*command, *what], capture_output=True, text=True, check=True)
        (row,) = json.loads(done.stdout)
        return float(row["avg_ns"]) / 1e9

    return lambda: (seconds(sizes.n_prompt, 0, 0), seconds(0, sizes.n, sizes.n_prompt))


def _ask(name: str, stdin: IO[str], stdout: IO[str]) -> tuple[float, float]:
    stdin.write("go\n")
    stdin.flush()
    line = stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended in the middle of a run")
    answer = json.loads(line)
    return answer["prefill_s"], answer["decode_s"]


def pythons_of(kind: str, given: list[str]) -> list[str]:
    """The Pythons that ``kind`` is tried in: those for its program, then those for all."""
    pairs = [text.rpartition("=") for text in given]
    program = kind.partition("-")[0]
    return [path for name, _, path in pairs if name == program] + [
        path for name, _, path in pairs if not name
    ]


class LeftOut(Exception):
    """A program that is not installed, or failed; the reason in one line."""


def _last_line(text: str, code: int) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else f"exit code {code}"


def converted(kind: str, pythons: list[str], checkpoint: Path, out: Path) -> dict[str, Any]:
    """Convert unless ``out`` is there; the folder appears when it is complete."""
    report = out / "conversion.json"
    if report.is_file():
        return dict(json.loads(report.read_text()))
    reasons = []
    for python in pythons:
        partial = out.with_name(out.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        command = [python, _WORKER, "convert", kind, str(checkpoint), str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            (partial / report.name).write_text(done.stdout)
            partial.rename(out)
            return dict(json.loads(done.stdout))
        reasons.append(_last_line(done.stderr, done.returncode))
        shutil.rmtree(partial, ignore_errors=True)
    raise LeftOut("; ".join(dict.fromkeys(reasons)) or "no --python was given")


def peer_side(stack: ExitStack, kind: str, pythons: list[str], work: Path, sizes: Sizes) -> Side:
    """A peer, warmed up, in the first Python that has it; LeftOut if none has."""
    model = work / "model"
    n_bytes = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    if kind.startswith("ik_llama-"):
        model = work / f"{kind.partition('-')[2]}.gguf"
        n_bytes = model.stat().st_size
    elif _PEERS[kind]:
        made = converted(kind, pythons, model, work / kind)
        model, n_bytes = work / kind, made["weights_bytes"]
        print(
            f"converted: {kind}: {made['seconds']:.0f} s, {made['peak_rss_bytes'] / 1e9:.2f} GB at "
            f"most, by {made['versions']}",
            file=sys.stderr,
        )
    reasons = []
    for python in pythons:
        complaints = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        process = stack.enter_context(
            subprocess.Popen(
                [python, _WORKER, "run", kind, str(model), *map(str, sizes)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True,
            )
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        line = process.stdout.readline()
        if line:
            run = functools.partial(_ask, kind, process.stdin, process.stdout)
            return Side(kind, run, n_bytes, json.loads(line)["versions"])
        code = process.wait()
        complaints.seek(0)
        reasons.append(_last_line(complaints.read(), code))
    raise LeftOut("; ".join(dict.fromkeys(reasons)) or "no --python was given")


def measure(sides: list[Side], rounds: int, sizes: Sizes) -> dict[str, list[tuple[float, float]]]:
    """Tokens per second (prefill, decode) of each side and round, of all sequences together; the
    first round warms up.
    """
    n_prompt, n = sizes.n_prompt * sizes.parallel, sizes.n * sizes.parallel
    found: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for i in range(rounds + 1):
        for side in (sides[j] for j in balanced_order(len(sides), i)):
            time.sleep(_REST_S)
            prefill_s, decode_s = side.run()
            if i:
                found[side.name].append((n_prompt / prefill_s, n / decode_s))
    return found


def balanced_order(n: int, i: int) -> list[int]:
    """The order of n sides in round i: what ran before leaves its mark on caches and clocks.

    i, i + 1, i - 1, i + 2 and so on, modulo n: over n rounds (2 n, if n is odd) each side follows
    each other equally often (Williams, Australian Journal of Scientific Research A 2, 1949).
    """
    steps = [(j + 1) // 2 * (1 if j % 2 else -1) for j in range(n)]
    order = [(i + step) % n for step in steps]
    return order[::-1] if i // n % 2 else order


def comparable(ours: Side, peer: Side) -> bool:
    """Whether both have weights of the same bits; a float peer is compared with all of ours."""
    if peer.name.startswith("infer-os"):
        return False
    if peer.name.startswith(("llama-bench", "ik_llama")):
        return peer.type == ours.type
    # q4_0, q4_k_m: the digit after the q
    return not peer.type.startswith("int") or ours.type[1] == peer.type[-1]


def show(
    sides: list[Side], found: Mapping[str, list[tuple[float, float]]], parallel: int
) -> list[Measurement]:
    """Print rates, then ours over theirs; what is printed, as measurements."""
    rows = []
    whats = ("prefill", "decode")
    print(f"{'':26}weights MB   prefill tokens/s           decode tokens/s")
    for side in sides:
        line = f"  {side.name:24}{side.weights_bytes / 1e6:10.0f}"
        for what, rates in zip(whats, zip(*found[side.name], strict=True), strict=True):
            low, middle, high = np.percentile(rates, [25, 50, 75])
            line += f"   {middle:8.1f} ({low:.1f} to {high:.1f})".ljust(30)
            labels = (("side", side.name), ("weights_bytes", side.weights_bytes),
                      ("parallel", parallel), ("versions", side.versions))  # fmt: skip
            rows += [Measurement(f"side_{what}", "tokens/s", rate, labels) for rate in rates]
        print(line)
    for ours in sides:
        peers = [peer for peer in sides if comparable(ours, peer)]
        if not ours.name.startswith("infer-os") or not peers:
            continue
        print(f"{ours.name}, times as fast as:")
        for peer in peers:
            ratios = np.array(found[ours.name]) / np.array(found[peer.name])  # (rounds, 2)
            line = f"  {peer.name:24}"
            pair = (("ours", ours.name), ("peer", peer.name), ("parallel", parallel))
            for what, column in zip(whats, ratios.T, strict=True):
                low, middle, high = np.percentile(column, [25, 50, 75])
                line += f"  {what} {middle:6.2f} ({low:.2f} to {high:.2f})".ljust(32)
                rows += [Measurement(f"peer_{what}", "times", r, pair) for r in column]
            print(line)
    return rows


def our_side(stack: ExitStack, gguf: Path, load: str, sizes: Sizes) -> Side:
    """A file in our engine, or in our batch engine."""
    name, n_bytes = f"infer-os {gguf.stem}", gguf.stat().st_size
    settings = EngineSettings(sizes.n_prompt + sizes.n + 8, load, sizes.threads)
    if sizes.parallel > 1:
        batch = stack.enter_context(BatchEngine(gguf, settings, BatchSettings(sizes.parallel)))
        run = our_batch_round(batch, sizes)
    else:
        run = our_round(stack.enter_context(LlamaEngine(gguf, settings)), sizes)
    return Side(name, run, n_bytes, f"llama.cpp {llama_version()}")


def our_sides(
    stack: ExitStack, work: Path, arguments: argparse.Namespace, kinds: list[str], sizes: Sizes
) -> list[Side]:
    """Ours and llama-bench's for every type."""
    program, reason = arguments.llama_bench, ""
    if sizes.parallel > 1:
        reason = "it has one sequence; benchmarks/batch.py runs llama-batched-bench"
    elif program is None:
        reason = "no --llama-bench was given"
    elif not program.is_file():
        reason = f"{program}: no such program"
    if reason:
        print(f"left out: llama-bench: {reason}", file=sys.stderr)
    sides = []
    for kind in kinds:
        gguf = work / f"{kind}.gguf"
        if not gguf.is_file():
            convert(ConvertSettings(work / "model", gguf, kind))
        sides.append(our_side(stack, gguf, arguments.load, sizes))
        if not reason:
            run = llama_round(program, gguf, sizes)
            sides.append(Side(f"llama-bench {kind}", run, gguf.stat().st_size, ""))
    return sides


def parse() -> argparse.Namespace:
    """The command line; an unknown peer is refused."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-bench", type=Path, help="the program, of a build of llama.cpp")
    parser.add_argument(
        "--python", action="append", default=[], metavar="[PROGRAM=]PATH",
        help="a Python with peers installed, or with this one; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--peers", default=",".join(_PEERS), help="only these (default: %(default)s)"
    )
    parser.add_argument("--geometry", choices=GEOMETRIES, default="distilgpt2")
    parser.add_argument("--layers", type=int, default=0, help="fewer than the model has")
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    parser.add_argument("--load", default="mmap", choices=LOADS, help="of ours (default: mmap)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--parallel", type=int, default=1, help="sequences at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keep the models here, and find them again")
    parser.add_argument("--rows", type=Path, help="append the figures to this file")
    arguments = parser.parse_args()
    programs = {kind.partition("-")[0] for kind in _PEERS} | {"ik_llama"}
    for text in arguments.python:
        name = text.rpartition("=")[0]
        if name and name not in programs:
            parser.error(f"--python {text}: {name} is not one of {', '.join(sorted(programs))}")
    arguments.peers = [name for name in arguments.peers.split(",") if name]
    for name in arguments.peers:
        if name not in _PEERS:
            parser.error(f"--peers {name}: choose from {', '.join(_PEERS)}")
    if arguments.parallel < 1:
        parser.error(f"--parallel {arguments.parallel}: expected 1 or more")
    return arguments


def main() -> None:
    """Make the models, take turns, print."""
    arguments = parse()
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(
            f"the machine is busy (load average {busy:.1f}): this slows the sides unevenly",
            file=sys.stderr,
        )
    sizes = Sizes(arguments.threads, arguments.prompt, arguments.tokens, arguments.parallel)
    name = f"{arguments.geometry}-{arguments.layers or 'all'}"
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        work = (arguments.work or Path(temporary)) / name
        if not (work / "model" / "model.safetensors.index.json").is_file():
            make_folder(arguments.geometry, work / "model", layers=arguments.layers)
        sides = our_sides(stack, work, arguments, arguments.types.split(","), sizes)
        for kind in [*arguments.peers, *(f"ik_llama-{t}" for t in arguments.types.split(","))]:
            pythons = pythons_of(kind, arguments.python)
            try:
                sides.append(peer_side(stack, kind, pythons, work, sizes))
            except LeftOut as reason:
                print(f"left out: {kind}: {reason}", file=sys.stderr)
        found = measure(sides, arguments.rounds, sizes)
    layers = f" of {arguments.layers} layers" if arguments.layers else ""
    at_once = f"{sizes.parallel} sequences at once, " if sizes.parallel > 1 else ""
    print(
        f"{arguments.geometry}{layers}, random weights, {at_once}{sizes.n_prompt} tokens of a "
        f"prompt, {sizes.n} decoded after it, {sizes.threads} threads, load {arguments.load}, "
        f"{arguments.rounds} alternating rounds"
    )
    rows = show(sides, found, sizes.parallel)
    for side in sides:
        if side.versions and not side.name.startswith("infer-os"):
            print(f"{side.name}: {side.versions}")
    if arguments.rows:
        place = make_place(" ".join(sys.argv), read_cpu().model, sizes.threads)
        with arguments.rows.open("a") as file:
            file.write(json_lines(make_rows(rows, name), place))


if __name__ == "__main__":
    main()
