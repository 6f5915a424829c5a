"""Planned and measured peak memory of commands: every peak must be within its plan.

    python benchmarks/plan_peaks.py [--only WORD] [--folder DIR] [--docs docs/memory.md]

A row is a command in a separate process, with a prompt that fills its buffers: the plan is what it
says it needs when allowed one byte (``--memory 1``), the peak its largest resident set, plus that
of the process that renders chat templates. Models are the bundled one in several types, and
random weights of published geometries, cut in layers. Rows of Parquet need the extra ``parquet``.
Exits with 1 if a peak is above its plan, or a plan more than 5 % and 10 MB above its peak.
``--docs`` writes the table into the page, between two marks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

# only the standard library: a child's peak begins at the parent's size
HERE = Path(__file__).parent
BUNDLED = HERE.parent / "models" / "bundled"
NEEDS = re.compile(r"it needs ([\d.]+) (GB|MB)")
LIMITS = 0.05, 10e6
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}
MARKS = "<!-- plan_peaks begins -->", "<!-- plan_peaks ends -->"


@dataclass(frozen=True)
class Model:
    """``source`` is bundled, or a name of the catalog with this many layers."""

    source: str
    type: str
    layers: int = 0
    talks: bool = False

    @property
    def name(self) -> str:
        """Its name in rows."""
        cut = f", {self.layers} layers" if self.layers else ""
        return f"{self.source} {self.type}{cut}{', with a template' if self.talks else ''}"

    @property
    def words(self) -> int:
        """Words of a prompt of some 600 tokens."""
        return 300 if self.source.startswith("austen") else 100

    def make(self, folder: Path) -> Path:
        """The file; in a process of its own, so that this one stays small."""
        path = folder / f"{self.source}-{self.type}-{self.layers}{'-talks' * self.talks}.gguf"
        if path.exists():
            return path
        if self.source.startswith("austen"):
            source = BUNDLED / self.source
            if self.talks:
                source = shutil.copytree(source, folder / "talks")
                config = source / "tokenizer_config.json"
                known = json.loads(config.read_text()) if config.exists() else {}
                config.write_text(json.dumps({**known, "chat_template": TEMPLATE}))
            command = ["-m", "infer_os.cli", "convert", str(source), "--type",
                       self.type, "-o", str(path)]  # fmt: skip
        else:
            command = [str(HERE / "random_gguf.py"), self.source, self.type, str(path),
                       "--layers", str(self.layers)]  # fmt: skip
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return path


@dataclass(frozen=True)
class Case:
    """A command; MODEL, DRAFT, PROMPT, RECORDS... in it are replaced. ``fresh``: an empty cache."""

    model: Model
    command: str
    stdin: int = 0
    fresh: bool = False
    records: str = "jsonl"


AUSTEN = Model("austen-6m", "q8_0")
TALKS = Model("austen-6m", "q8_0", talks=True)
PYTHIA = Model("pythia-160m", "q4_0", 6)
NARROW = "generate MODEL -f PROMPT -n 8 --context 1024"


def cases() -> list[Case]:
    """All combinations, grouped by model."""
    found = []
    for kind in ("f16", "q8_0", "q4_0", "q4_k_m"):
        found.append(Case(Model("austen-6m", kind), NARROW))
    for more in (
        "--context 2048", "--kv q8_0", "--kv q4_0", "--kv f16:512,q8_0:1024", "--kv-budget 4MB",
        "--load fast", "--load direct", "--no-native", "--draft lookup", "--draft DRAFT",
        "--grammar GRAMMAR", "--json-schema SCHEMA", "--threads 2",
    ):  # fmt: skip
        found.append(Case(AUSTEN, f"{NARROW} {more}".replace("1024 --context ", "")))
    batch = "batch MODEL -i RECORDS -o OUT --force -n 8 --context 1024 --parallel"
    for n in ("1", "4", "8", "9", "16", "32", "4 --draft DRAFT", "4 --draft lookup",
              "8 --kv q8_0", "8 --no-native"):  # fmt: skip
        found.append(Case(AUSTEN, f"{batch} {n}"))
    for n in ("1", "4", "8", "32"):
        found.append(Case(AUSTEN, f"{batch} {n} --adapter LORA", records="adapted"))
    found.append(Case(AUSTEN, f"{NARROW} --adapter LORA"))
    for n in ("2", "4", "8", "4 --kv q8_0", "4 --no-native"):
        found.append(Case(AUSTEN, f"{batch.replace('--parallel', '--temperature 0 --beams')} {n}"))
    found.append(Case(AUSTEN, f"{NARROW} --temperature 0 --beams 4"))
    embed = "embed MODEL -i RECORDS -o OUT --force --context 1024"
    for more in ("", " --pooling last", " --kv q8_0"):
        found.append(Case(AUSTEN, f"{embed}{more}", records="lines"))
    score = "score MODEL -i RECORDS -o OUT --force --context 1024 --parallel"
    for n in ("1", "8", "32", "8 --totals", "8 --no-native", "8 --kv q8_0"):
        found.append(Case(AUSTEN, f"{score} {n}", records="pairs"))
    found += [
        Case(AUSTEN, f"{score} 8", records="texts"),
        Case(AUSTEN, f"{score} 8 --totals", records="texts"),
        Case(AUSTEN, f"{batch} 8", records="csv"),
        Case(AUSTEN, f"{batch} 8", records="parquet"),
        Case(AUSTEN, "chat MODEL --context 1024 --style dialogue", 1),
        Case(AUSTEN, "chat MODEL --context 1024 --session SESSION", 1),
        Case(AUSTEN, "chat MODEL --context 1024 --session SESSION --kv q8_0", 2),
        Case(TALKS, "chat MODEL --context 1024", 1),
        Case(TALKS, "chat MODEL --context 1024 --style dialogue", 1),
        Case(TALKS, f"{batch} 4", records="messages"),
        Case(AUSTEN, "eval MODEL --text PROMPT --window 256"),
        Case(AUSTEN, "eval MODEL --text PROMPT --window 256 --reference DRAFT --kv f16,q8_0"),
        Case(AUSTEN, "eval MODEL --text PROMPT --window 256 --kv f16:128,q8_0:256 --windows 1"),
        Case(AUSTEN, "run --model FOLDER --context 1024 --type q8_0", 1, fresh=True),
        Case(AUSTEN, "run --model FOLDER --context 1024 --type f16", 1, fresh=True),
        Case(AUSTEN, "run --model FOLDER --lora LORA --context 1024 --type q8_0", 1, fresh=True),
        Case(AUSTEN, "run --model FOLDER --lora LORA --context 1024 --type f16", 1, fresh=True),
        Case(AUSTEN, "bench MODEL --depths 0,600 --repeats 1 --tokens 8 --prompt-tokens 300 "
             "--batch 1,2 --context 1024"),
        Case(AUSTEN, "bench MODEL --depths 0,600 --repeats 1 --tokens 8 --prompt-tokens 300 "
             "--batch 32 --context 1024"),
        Case(AUSTEN, "bench MODEL --depths 0,600 --repeats 1 --tokens 8 --prompt-tokens 300 "
             "--batch 1 --compare-kv f16,q8_0 --context 1024"),
        Case(AUSTEN, "bench MODEL --depths 0,600 --repeats 1 --tokens 8 --prompt-tokens 300 "
             "--batch 1 --context 1024 --report REPORT"),
    ]  # fmt: skip
    for model in (
        PYTHIA, Model("pythia-160m", "q8_0", 6), Model("distilgpt2", "q8_0"),
        Model("bloom-560m", "q4_0", 6), Model("gpt-j-6B", "q4_0", 2),
        Model("gpt-neox-20b", "q4_0", 2), Model("gpt2-large", "q4_k_m", 8),
    ):  # fmt: skip
        found += _usual_cases(model, batch, score, embed)
    return found


def _usual_cases(model: Model, batch: str, score: str, embed: str) -> list[Case]:
    """What is measured of every model."""
    found = [
        Case(model, NARROW),
        Case(model, f"{NARROW} --load fast --kv q8_0"),
        Case(model, f"{batch} 8"),
        Case(model, f"{score} 8", records="pairs"),
        Case(model, f"{batch.replace('--parallel', '--temperature 0 --beams')} 4"),
        Case(model, embed, records="lines"),
    ]
    if model.source in ("bloom-560m", "pythia-160m"):  # large vocabularies
        found += [
            Case(model, f"{NARROW} --json-schema SCHEMA"),
            Case(model, "eval MODEL --text PROMPT --window 256 --windows 1"),
        ]
    return found


def run(words: list[str], stdin: bytes, cache: Path) -> tuple[int, int, str]:
    """A command's exit code, its peak in bytes, and what it wrote to stderr."""
    environment = {**os.environ, "INFER_OS_CACHE": str(cache)}
    child = subprocess.Popen(
        [sys.executable, "-m", "infer_os.cli", *words], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip
    assert child.stdin is not None and child.stderr is not None
    said: list[bytes] = []
    stderr = child.stderr
    reader = threading.Thread(target=lambda: said.append(stderr.read()))
    reader.start()
    helpers: dict[int, int] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=watch_helpers, args=(child.pid, helpers, ended))
    watcher.start()
    try:
        child.stdin.write(stdin)
        child.stdin.close()
    except BrokenPipeError:
        pass
    _, status, use = os.wait4(child.pid, 0)
    ended.set()
    reader.join()
    watcher.join()
    peak = use.ru_maxrss * 1024 + sum(helpers.values())
    return os.waitstatus_to_exitcode(status), peak, said[0].decode()


def watch_helpers(pid: int, peaks: dict[int, int], ended: threading.Event) -> None:
    """Keep the peaks of the processes that render a command's templates, in bytes, by their id."""
    while not ended.wait(0.05):
        with contextlib.suppress(OSError):
            for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if b"from sandbox.main" not in Path(f"/proc/{word}/cmdline").read_bytes():
                    continue
                for line in Path(f"/proc/{word}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peaks[int(word)] = int(line.split()[1]) * 1024


def write_records(path: Path, words: int) -> None:
    """Prompts that fill every sequence's part of a step, and most of its context."""
    texts = [f"{i} " + "the sea " * words for i in range(40)]
    if path.stem == "pairs":
        answers = ["yes", "no", "the sea the sky", "the sea " * (words // 3)]
        lines = [
            json.dumps({"context": text[: len(text) // 2], "continuation": f" {answer}"})
            for text in texts for answer in answers
        ]  # fmt: skip
    elif path.stem == "lines":
        lines = [json.dumps({"text": text}) for text in texts]
    elif path.stem == "texts":
        lines = [json.dumps({"text": text * 8}) for text in texts[:20]]
    elif path.stem == "messages":
        talks = [[{"role": "user", "content": text}] for text in texts]
        lines = [json.dumps({"id": i, "messages": talk}) for i, talk in enumerate(talks)]
    elif path.stem == "adapted":  # which take turns
        lines = [
            json.dumps({"prompt": text, "adapter": name})
            for text in texts[:12] for name in ("adapter", "off")
        ]  # fmt: skip
    elif path.suffix == ".jsonl":
        lines = [json.dumps({"id": i, "prompt": text}) for i, text in enumerate(texts)]
    else:
        lines = ["id,prompt", *(f"{i},{text}" for i, text in enumerate(texts))]
    path.write_text("\n".join(lines) + "\n")
    if path.suffix == ".parquet":
        code = (
            "import sys, pyarrow.csv, pyarrow.parquet as p\n"
            "p.write_table(pyarrow.csv.read_csv(sys.argv[1] + '.csv'), sys.argv[1])"
        )
        shutil.copy(path, f"{path}.csv")
        subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def write_adapter(folder: Path, base: Path) -> Path:
    """A LoRA adapter of rank 16 for a bundled model, made in another process."""
    shutil.rmtree(folder, ignore_errors=True)
    script = HERE.parent / "tests" / "random_adapter.py"
    subprocess.run([sys.executable, str(script), str(base), str(folder)], check=True)
    return folder


def measure(case: Case, folder: Path, threads: str) -> dict[str, object]:
    """A row: the plan and the peak, in bytes."""
    model = case.model.make(folder)
    prompt, records = folder / "prompt.txt", folder / f"records.{case.records}"
    answers = case.records
    if case.records in ("messages", "pairs", "texts", "lines", "adapted"):
        records, answers = folder / f"{case.records}.jsonl", "jsonl"
    text = "the sea " * case.model.words
    prompt.write_text(text)
    write_records(records, case.model.words)
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    (folder / "any.gbnf").write_text('root ::= "a" [a-z ]*\n')
    places = {
        "MODEL": model, "PROMPT": prompt, "RECORDS": records,
        "OUT": folder / f"answers.{answers}", "GRAMMAR": folder / "any.gbnf",
        "SCHEMA": folder / "schema.json",
        "SESSION": folder / "talk.session", "REPORT": folder / "report",
        "FOLDER": BUNDLED / case.model.source,
    }  # fmt: skip
    if "LORA" in case.command:
        places["LORA"] = write_adapter(folder / "adapter", BUNDLED / case.model.source)
    if "DRAFT" in case.command:
        places["DRAFT"] = Model("austen-draft", "q8_0").make(folder)
    words = [str(places.get(word, word)) for word in case.command.split()]
    if "--threads" not in words:
        words += ["--threads", threads]
    (folder / "talk.session").unlink(missing_ok=True)
    talk = f"{text}\nAnd then?\n/quit\n".encode()
    stdin = text.encode() if case.command.startswith("run") else talk if case.stdin else b""
    cache = Path(tempfile.mkdtemp(dir=folder)) if case.fresh else folder / "cache"
    if case.stdin == 2:
        run(words, b"And then?\n/quit\n", cache)  # a conversation to go on with
    row = {"model": case.model.name, "command": case.command, "records": case.records}
    _, _, refused = run([*words, "--memory", "1"], stdin, cache)
    found = NEEDS.search(refused)
    if not found:
        print(f"{case.command}: no plan: {refused[-500:]}")
        return {**row, "plan": 0.0, "peak": 0.0, "good": False}
    plan = float(found[1]) * {"GB": 1e9, "MB": 1e6}[found[2]]
    code, peak, said = run(words, stdin, cache)
    if code:
        print(f"{case.command}: exit code {code}: {said[-500:]}")
    good = not code and peak <= plan <= peak + max(LIMITS[0] * peak, LIMITS[1])
    return {**row, "plan": plan, "peak": peak, "good": good}


def table(rows: list[dict[str, object]]) -> str:
    """The rows for a page, in MB."""
    lines = ["| model | command | planned | peak | difference |", "|---|---|---|---|---|"]
    for row in rows:
        plan, peak = float(str(row["plan"])), float(str(row["peak"]))
        command = str(row["command"]).replace(" --context 1024", "").replace("RECORDS", "")
        if command.startswith(("batch", "score", "embed")):
            command = command.replace("-i  -o OUT --force", f"({row['records']})")
        command = command.replace("MODEL ", "").replace("-f PROMPT ", "").replace("|", "\\|")
        lines.append(
            f"| {row['model']} | `{command}` | {plan / 1e6:.1f} | {peak / 1e6:.1f} | "
            f"{(plan - peak) / 1e6:+.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and say whether every plan held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose model or command has this in it")
    parser.add_argument("--folder", type=Path, help="where the models are made, and deleted")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--docs", type=Path, help="a page to write the table into")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    before: Path | None = None
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="plan-peaks-") as place:
        for case in cases():
            if arguments.only not in f"{case.model.name} {case.command}":
                continue
            row = measure(case, Path(place), arguments.threads)
            rows.append(row)
            plan, peak = float(str(row["plan"])), float(str(row["peak"]))
            print(
                f"{'ok ' if row['good'] else 'BAD'} {row['model']:28} {case.command[:70]:70} "
                f"planned {plan / 1e6:8.1f} peak {peak / 1e6:8.1f} {(plan - peak) / 1e6:+7.1f} MB",
                flush=True,
            )
            now = case.model.make(Path(place))
            if before not in (None, now) and "austen" not in before.name:
                before.unlink()
            before = now
    bad = sum(not row["good"] for row in rows)
    print(f"{len(rows)} combinations, {bad} outside their bounds")
    if arguments.docs:
        page = arguments.docs.read_text("utf-8")
        head, rest = page.split(MARKS[0])
        tail = rest.split(MARKS[1])[1]
        arguments.docs.write_text(
            f"{head}{MARKS[0]}\n{table(rows)}\n{MARKS[1]}{tail}", encoding="utf-8"
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
