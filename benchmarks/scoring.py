"""Multiple-choice records scored by infer-os and by transformers, in turns in one run.

    python benchmarks/scoring.py --python VENV/bin/python [--geometry pythia-160m] [--layers N]
        [--types f16,q8_0,q4_0] [--dtypes float32,bfloat16] [--records 2000] [--choices 4]
        [--context 60] [--answer 10] [--one-token] [--parallel 8] [--batch 8] [--rounds 3]
        [--llama-perplexity FILE] [--work DIR]

A checkpoint of random weights and real geometry is made once, and converted to each type.
Questions have about ``--context`` tokens and ``--choices`` answers of up to ``--answer`` tokens
(with ``--one-token`` one each). Ours reads texts, which it cuts into tokens itself; transformers
(in the Python that --python names, with torch) gets tokens, and does with them what ``hf`` of
lm-evaluation-harness does (scoring_worker.py). All have as many threads as there are cores; ours
uses fewer while other programs have them. ``--llama-perplexity`` is llama.cpp's program of that
name, whose multiple choice computes a question once, too; its clock starts behind loading and
tokenizing.

Prints records per second of each side, and ours over theirs, as medians with the least and the most
over the rounds; and how far the scores are apart: largest difference of a sum, and questions for
which both choose the same answer. Random weights find nearly everything equally likely, so choices
say little but for F16.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from random_model import GEOMETRIES, make_folder

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.library import llama_version
from infer_os.native.processors import usable_cores
from infer_os.runtime.plan.machine import read_cpu
from infer_os.runtime.scoring.joining import join_pair
from infer_os.runtime.scoring.score_records import ScoreRecord
from infer_os.runtime.scoring.scorer import Scorer
from infer_os.runtime.scoring.settings import ScoringSettings
from infer_os.runtime.settings import EngineSettings

#: Seconds, and the sums in the order of the records.
Taken = tuple[float, list[float]]

_WORKER = str(Path(__file__).with_name("scoring_worker.py"))


def make_records(arguments: argparse.Namespace) -> list[ScoreRecord]:
    """Questions and answers of made-up words of three letters or fewer, a token or two each."""
    chance = random.Random(1)

    def words(n: int) -> str:
        letters = "abcdefghijklmnopqrstuvwxyz"
        return "".join(" " + "".join(chance.choices(letters, k=2)) for _ in range(n))

    records: list[ScoreRecord] = []
    while len(records) < arguments.records:
        # a blank is a token of its own, and so is each word
        context = words(max(2, round(arguments.context * chance.uniform(0.5, 1.5) / 2)))
        for _ in range(arguments.choices):
            n = 1 if arguments.one_token else max(1, chance.randint(2, arguments.answer) // 2)
            answer = words(n).lstrip() if arguments.one_token else words(n)
            number = len(records) + 1
            records.append(ScoreRecord(number, number, answer, context + ":"))
    return records[: arguments.records]


def our_round(scorer: Scorer, records: list[ScoreRecord]) -> Taken:
    """Seconds of a run over all records, and the sums in their order."""
    sums = [0.0] * len(records)
    started = time.perf_counter()
    for result in scorer.run(records):
        assert result.logprob is not None, result.error
        sums[result.line - 1] = result.logprob
    return time.perf_counter() - started, sums


def their_round(worker: subprocess.Popen[str]) -> Taken:
    """Likewise, of a worker."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("go\n")
    worker.stdin.flush()
    answer = json.loads(worker.stdout.readline())
    return answer["seconds"], answer["sums"]


def write_tasks(records: list[ScoreRecord], n_choices: int, path: Path) -> None:
    """Questions as llama-perplexity reads them (``multiple_choice_task`` of its perplexity.cpp)."""

    def framed(text: str) -> bytes:
        return struct.pack("<I", len(text.encode())) + text.encode()

    tasks = []
    for at in range(0, len(records), n_choices):
        answers = [record.text.strip() for record in records[at : at + n_choices]]
        labels = struct.pack(f"<{n_choices}i", 1, *[0] * (n_choices - 1))
        listed = struct.pack("<I", n_choices) + b"".join(map(framed, answers)) + labels
        tasks.append(framed(records[at].context or "") + listed + struct.pack("<I", 0))
    # read for a choice of tasks alone
    positions = struct.pack(f"<{len(tasks)}I", *[0] * len(tasks))
    path.write_bytes(struct.pack("<I", len(tasks)) + positions + b"".join(tasks))


def perplexity_round(program: Path, model: Path, tasks: Path, threads: int) -> Taken:
    """Seconds of llama-perplexity from its first batch to its last task; it tells no sums."""
    command = [program, "-m", model, "-bf", tasks, "--multiple-choice", "-c", 2048, "-b", 2048,
               "-t", threads]  # fmt: skip
    n_tasks = struct.unpack("<I", tasks.read_bytes()[:4])[0]
    started = ended = 0.0
    n_done = 0
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "acc_norm" in line:
                started = time.perf_counter()
            elif started and line[:1].isdigit() and "\t" in line:
                n_done, ended = n_done + 1, time.perf_counter()
    if n_done != n_tasks:
        raise SystemExit(f"{program}: {n_done} of {n_tasks} tasks")
    return ended - started, []


def choices(sums: list[float], n: int) -> list[int]:
    """The answer that each question's sums choose."""
    parts = [sums[at : at + n] for at in range(0, len(sums), n)]
    return [part.index(max(part)) for part in parts]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="a Python with torch and transformers")
    parser.add_argument("--geometry", default="pythia-160m", choices=sorted(GEOMETRIES))
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--types", default="f16,q8_0,q4_0")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    for name, default in (("records", 2000), ("choices", 4), ("context", 60), ("answer", 10),
                          ("parallel", 8), ("batch", 8), ("rounds", 3)):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--one-token", action="store_true")
    parser.add_argument("--llama-perplexity", type=Path)
    parser.add_argument("--work", type=Path, help="where models are made, and kept")
    return parser.parse_args()


def main() -> int:
    """Make, measure, print."""
    arguments = parse()
    threads, n_ctx = usable_cores(), 512
    with ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = work / f"{arguments.geometry}-{arguments.layers}"
        if not (folder / "config.json").exists():
            make_folder(arguments.geometry, folder, layers=arguments.layers)
        records = make_records(arguments)
        files: dict[str, Path] = {}
        scorers: dict[str, Scorer] = {}
        for kind in arguments.types.split(","):
            file = work / f"{folder.name}-{kind}.gguf"
            if not file.exists():
                convert(ConvertSettings(folder, file, kind))
            files[kind] = file
            settings = EngineSettings(context=n_ctx)
            scoring = ScoringSettings(arguments.parallel, totals=True)
            scorers[f"infer-os {kind}"] = stack.enter_context(Scorer(file, settings, scoring))
        vocab = next(iter(scorers.values())).vocab
        windows = [join_pair(vocab, r.context or "", r.text, n_ctx)[0] for r in records]
        rows = work / "records.jsonl"
        rows.write_text("\n".join(
            json.dumps({"tokens": list(w.tokens), "first": w.first}) for w in windows
        ))  # fmt: skip
        scored = sum(window.n_scored for window in windows)
        print(f"{read_cpu().model}, {threads} threads, load {os.getloadavg()[0]:.1f}, llama.cpp of "
              f"llama-cpp-python {llama_version()}")  # fmt: skip
        print(f"{arguments.geometry}, {len(records)} records of {arguments.choices} answers, "
              f"{sum(len(w.tokens) for w in windows) / len(windows):.1f} tokens each, "
              f"{scored / len(windows):.1f} of them scored")  # fmt: skip
        workers: dict[str, subprocess.Popen[str]] = {}
        for dtype in arguments.dtypes.split(",") if arguments.python else ():
            command = [arguments.python, _WORKER, str(folder), dtype, str(threads), str(rows),
                       str(arguments.batch)]  # fmt: skip
            worker = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert worker.stdout is not None
            print(f"transformers {dtype}: {worker.stdout.readline().strip()}")
            workers[f"transformers {dtype}"] = worker
        rounds: dict[str, Callable[[], Taken]] = {}
        for name, scorer in scorers.items():
            rounds[name] = partial(our_round, scorer, records)
        if program := arguments.llama_perplexity:
            tasks = work / "tasks.bin"
            write_tasks(records, arguments.choices, tasks)
            for kind, file in files.items():
                name = f"llama-perplexity {kind}"
                rounds[name] = partial(perplexity_round, program, file, tasks, threads)
        for name, worker in workers.items():
            rounds[name] = partial(their_round, worker)
        seconds: dict[str, list[float]] = {name: [] for name in rounds}
        sums: dict[str, list[float]] = {}
        for turn in range(arguments.rounds):
            print(f"round {turn + 1}, load {os.getloadavg()[0]:.1f}", flush=True)
            for name, one_round in rounds.items():
                taken, sums[name] = one_round()
                seconds[name].append(taken)
        for worker in workers.values():
            assert worker.stdin is not None
            worker.stdin.close()
    show(seconds, sums, len(records), arguments.choices)
    return 0


def show(
    seconds: dict[str, list[float]], sums: dict[str, list[float]], n_records: int, n_choices: int
) -> None:
    """Rates, then ours over theirs round by round, and how far scores are apart."""
    for name, taken in seconds.items():
        rates = sorted(n_records / one for one in taken)
        print(f"{name:24} {statistics.median(rates):8.1f} records/s "
              f"({rates[0]:.1f} to {rates[-1]:.1f})")  # fmt: skip
    for name in seconds:
        for other in seconds:
            if comparable(name, other):
                pairs = zip(seconds[name], seconds[other], strict=True)
                times = sorted(their / our for our, their in pairs)
                print(f"{name} over {other}: {statistics.median(times):.2f} times "
                      f"({times[0]:.2f} to {times[-1]:.2f})"
                      f"{apart(sums[name], sums[other], n_choices)}")  # fmt: skip


def comparable(name: str, other: str) -> bool:
    """Whether these are ours and one of theirs; llama-perplexity's with a file of the same type."""
    (who, kind), (whose, its) = name.split(" ", 1), other.split(" ", 1)
    return who == "infer-os" and whose != who and (whose != "llama-perplexity" or its == kind)


def apart(ours: list[float], theirs: list[float], n_choices: int) -> str:
    """How far scores are apart; nothing of a side that tells none."""
    if not theirs:
        return ""
    largest = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    pairs = zip(choices(ours, n_choices), choices(theirs, n_choices), strict=True)
    same = [one == their for one, their in pairs]
    return f"; sums {largest:.3f} apart at most, {sum(same)} of {len(same)} choices the same"


if __name__ == "__main__":
    sys.exit(main())
