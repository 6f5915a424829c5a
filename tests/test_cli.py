"""The command line: exit codes, one line per error, answers on stdout alone, JSON as promised."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pexpect
import pytest
import typer
from helpers import PARALLEL, Converter, copy_checkpoint, set_config, small_memory
from in_process import Cli, Outcome, runner

from infer_os.cli import app
from infer_os.commands import loading
from infer_os.commands.index import SUMMARIES
from infer_os.native.errors import DecodeError
from infer_os.runtime.fake import END, FakeEngine, Script, saying
from infer_os.terminal import conversation
from infer_os.terminal.line_editor import Entry


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Run a command in this process."""

    return runner(monkeypatch, capfdbinary)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], FakeEngine]:
    """Put a scripted engine in the place of a model."""

    def put(script: Script, n_ctx: int = 500) -> FakeEngine:
        engine = FakeEngine(script, n_ctx)
        monkeypatch.setattr(loading, "load_engine", lambda path, settings: (engine, 0.25))
        return engine

    return put


def process(
    *arguments: object, stdin: bytes | None = b"", **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run the installed command."""
    return subprocess.run(
        [sys.executable, "-m", "infer_os.cli", *map(str, arguments)],
        input=stdin, capture_output=True, check=False, timeout=60, **options,
    )  # fmt: skip


def give_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    monkeypatch.setattr(sys, "stdin", os.fdopen(read, "r", encoding="utf-8"))


# ---- help


@pytest.mark.parametrize("command", [[], *[[name] for name in SUMMARIES]])
def test_help(run: Cli, command: list[str]) -> None:
    for flag in ("-h", "--help"):
        result = run(*command, flag)
        assert result.code == 0
        assert result.err == ""
        assert "Usage:" in result.out


@pytest.mark.parametrize("command", ["run", "chat", "generate", "batch"])
def test_help_begins_with_what_people_use_first(run: Cli, command: str) -> None:
    help_text = run(command, "--help").out
    places = [
        help_text.index(option)
        for option in (
            "--max-tokens N", "--temperature T", "--seed S", "--regex TEXT", "--dry-base X"
        )
    ]  # fmt: skip
    assert places == sorted(places)


@pytest.mark.parametrize("command", ["batch", "score", "embed", "generate"])
def test_a_type_is_for_models_that_are_converted(run: Cli, command: str) -> None:
    result = run(command, "no-such-model", "--type", "q9_9")
    assert result.code == 2
    assert "q9_9" in result.err
    assert "q4_0" in result.err  # what would work


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['infer-os', *sys.argv[1:]]\n"
        "from infer_os import cli\n"
        "try: cli.main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'numpy', 'llama_cpp', 'rich', 'huggingface_hub', 'gguf', 'prompt_toolkit',\n"
        "         'jinja2', 'matplotlib'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["generate", "--help"], ["convert", "-h"], ["--version"],
                      ["run", "--help"], ["models", "rm", "--help"],
                      ["bench", "--help"], ["eval", "-h"]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr == "0 []\n"


def test_help_imports_no_command() -> None:
    script = (
        "import sys; sys.argv = ['infer-os', '--help']\n"
        "from infer_os import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "rooms = ('infer_os.commands.', 'infer_os.runtime')\n"
        "print([m for m in sys.modules if m.startswith(rooms)], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "['infer_os.commands.index']\n"


def test_listed_summaries_are_those_of_the_commands() -> None:
    group: Any = typer.main.get_command(app)
    for name, summary in SUMMARIES.items():
        command = group.commands[name]
        assert command.name == name
        assert command.help.startswith(summary)


def test_version(run: Cli) -> None:
    import infer_os

    assert run("--version") == Outcome(0, f"infer-os {infer_os.__version__}\n", "")


def test_without_a_command_comes_the_help(run: Cli) -> None:
    result = run()
    assert (result.code, result.out) == (2, "")
    assert "Usage:" in result.err
    assert "convert" in result.err


# ---- bad input: one line, exit code 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nope"], "No such command 'nope'; --help lists them"),
        (["generate"], "MODEL"),
        (["generate", "m.gguf", "--bogus"], "--bogus"),
        (["generate", "m.gguf", "--top-k", "many"], "--top-k"),
        (["generate", "m.gguf", "-p", "x", "--temperature", "-1"], "--temperature -1.0"),
        (["generate", "m.gguf", "--temperature", "nan"], "'--temperature': expected a number\n"),
        (["generate", "m.gguf", "-p", "x", "--top-k", "-1"], "--top-k -1"),
        (["generate", "m.gguf", "-p", "x", "--top-p", "0"], "--top-p 0"),
        (["generate", "m.gguf", "-p", "x", "--min-p", "1"], "--min-p 1"),
        (["generate", "m.gguf", "-p", "x", "--repeat-penalty", "0"], "--repeat-penalty 0"),
        (["generate", "m.gguf", "-p", "x", "--seed", "-2"], "--seed -2: expected 0 to"),
        (["generate", "m.gguf", "-p", "x", "-n", "0"], "--max-tokens 0: expected 1"),
        (["generate", "m.gguf", "-p", "x", "--stop", ""], "--stop"),
        (["generate", "m.gguf", "-p", "x", "--context", "3"], "--context 3"),
        (["generate", "m.gguf", "-p", "x", "--load", "gpu"], "--load gpu"),
        (["generate", "m.gguf", "-p", "x", "--threads", "0"], "--threads 0: expected a larger"),
        (["generate", "m.gguf", "-p", "x", "--context", "0"], "--context 0: expected a larger"),
        (["plan", "gpt2", "--threads", "0"], "--threads 0: expected a larger number"),
        (["convert", str(PARALLEL), "--threads", "0"], "--threads 0: expected a larger number"),
        (["demo", "--threads", "0"], "--threads 0: expected a larger number"),
        (["eval", "--threads", "0"], "--threads 0: expected a larger number"),
        (["convert", str(PARALLEL), "--threads", "513"], "--threads 513: expected 1 to 512"),
        (["bench", "--tokens", "0"], "--tokens 0: expected 1 to 65536"),
        (["bench", "--prompt-tokens", "0"], "--prompt-tokens 0: expected 1 to 65536"),
        (["generate", "m.gguf", "-p", "x", "--threads", "-2"], "--threads -2"),
        (["generate", "m.gguf", "-n", "abc"], "'-n' / '--max-tokens': expected a whole number\n"),
        (["generate", "m.gguf", "--temperature", "a"], "'--temperature': expected a number\n"),
        (["generate", "no-such.gguf", "-p", "x"], "no-such.gguf: no such file"),
        (["generate", "no-such.gguf", "-p", "x", "-f", "y"], "--prompt and --file"),
        (["generate", "no-such.gguf", "-f", "no-such.txt"], "no-such.txt: cannot be read"),
        (["chat", "no-such.gguf"], "no-such.gguf: no such file"),
        (["chat", "m.gguf", "--style", "rude"], "--style rude: expected one of dialogue, plain"),
        (["inspect", "no-such.gguf"], "no-such.gguf: no such file"),
        (["convert", "no-such-folder"], "no-such-folder: no such folder"),
        (["convert", str(PARALLEL), "--type", "q9"], "unknown type 'q9'"),
        (["convert", str(PARALLEL), "-o", "/no/such/folder/m.gguf"], "no such folder"),
    ],
)  # fmt: skip
def test_bad_input(run: Cli, arguments: list[str], part: str) -> None:
    result = run(*arguments)
    assert part in result.error
    assert result.code == 2


def test_an_unsupported_architecture(run: Cli, checkpoint: Path, tmp_path: Path) -> None:
    set_config(checkpoint, architectures=["LlamaForCausalLM"])
    result = run("convert", checkpoint, "-o", tmp_path / "m.gguf")
    assert "LlamaForCausalLM; supported are" in result.error
    assert result.code == 2
    assert not (tmp_path / "m.gguf").exists()


def test_an_existing_output(run: Cli, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"old")
    result = run("convert", PARALLEL, "-o", target)
    assert "--force" in result.error
    assert result.code == 2
    assert target.read_bytes() == b"old"
    assert run("convert", PARALLEL, "-o", target, "--force").code == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_a_truncated_shard(run: Cli, checkpoint: Path, tmp_path: Path) -> None:
    shard = next(checkpoint.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)
    result = run("convert", checkpoint, "-o", tmp_path / "m.gguf")
    assert "truncated" in result.error
    assert result.code == 2


@pytest.mark.parametrize("command", ["inspect", "generate", "chat"])
@pytest.mark.parametrize(
    "data", [b"", b"not a model at all", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16]
)
def test_a_bad_gguf(run: Cli, tmp_path: Path, command: str, data: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    result = run(command, path, *(["-p", "x"] if command == "generate" else []))
    assert "bad.gguf" in result.error
    assert result.code == 2


def test_a_gguf_without_a_tensor(run: Cli, tmp_path: Path, converted: Converter) -> None:
    data = converted().read_bytes().replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_uq.weight")
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    result = run("generate", path, "-p", "x")
    assert "odd.gguf: bad GGUF header: the tensor 'blk.1.ffn_up.weight' is missing" in result.error
    assert result.code == 2


def test_a_model_larger_than_memory(
    run: Cli, converted: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", small_memory)
    result = run("generate", converted(), "-p", "x")
    # the plan follows the line, so that one sees what to give up
    assert result.err.startswith("error: ")
    assert "does not fit" in result.err.splitlines()[0]
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.code == 2


def test_an_empty_prompt(run: Cli, converted: Converter) -> None:
    result = run("generate", converted(), "-p", "", "--threads", 1)
    assert "the prompt is empty" in result.error
    assert result.code == 2


def test_a_prompt_that_does_not_fit(run: Cli, converted: Converter) -> None:
    result = run("generate", converted(), "-p", "word " * 200, "--threads", 1)
    assert "--context" in result.error
    assert result.code == 2


def test_errors_have_one_line_whatever_the_name(run: Cli, tmp_path: Path) -> None:
    assert run("inspect", tmp_path / "two\nlines\r\nof.gguf").error
    assert run("convert", "a\nb").error


# ---- failures while running: exit code 1


def test_a_failure_while_running(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    def fails(tokens: Sequence[int]) -> int:
        raise DecodeError("llama_decode failed with -3: out of luck")

    fake(fails)
    result = run("generate", "m.gguf", "-p", "x")
    assert "out of luck" in result.error
    assert result.code == 1


def test_a_bug_is_one_line_too(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    def fails(tokens: Sequence[int]) -> int:
        raise ZeroDivisionError("over\nthere")

    fake(fails)
    result = run("generate", "m.gguf", "-p", "x")
    assert "ZeroDivisionError" in result.error
    assert "--debug" in result.error
    assert result.code == 1


def test_debug_shows_the_traceback() -> None:
    done = process("--debug", "inspect", "no-such.gguf")
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


# ---- convert and inspect


def test_convert_says_what_it_did(run: Cli, tmp_path: Path) -> None:
    result = run("convert", PARALLEL, "-o", tmp_path / "m.gguf", "--type", "q8_0")
    assert (result.code, result.out) == (0, "")
    assert f"wrote {tmp_path / 'm.gguf'}" in result.err
    assert "\x1b" not in result.err
    assert "\r" not in result.err


def test_convert_json(run: Cli, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    result = run("convert", PARALLEL, "-o", target, "--type", "q8_0", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    report = json.loads(result.out)
    keys = {
        "output", "architecture", "graph", "type", "bytes", "bits_per_weight", "tensors",
        "seconds", "peak_rss_bytes", "errors",
    }  # fmt: skip
    assert keys <= set(report)
    assert report["output"] == str(target)
    assert (report["architecture"], report["graph"]) == ("GPTNeoXForCausalLM", "gptneox")
    assert (report["type"], report["bytes"]) == ("q8_0", target.stat().st_size)
    assert report["written"] is True


def test_convert_dry_run_writes_nothing(run: Cli, tmp_path: Path) -> None:
    result = run("convert", PARALLEL, "-o", tmp_path / "m.gguf", "--dry-run")
    assert result.code == 0
    assert "would write" in result.err
    assert list(tmp_path.iterdir()) == []
    # there are no errors yet: a table without those columns
    assert "bits" in result.err
    assert "error" not in result.err


def test_inspect_json(run: Cli, converted: Converter) -> None:
    result = run("inspect", converted(kind="q8_0"), "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert {"architecture", "metadata", "tensors", "bits_per_weight"} <= set(told)
    assert told["architecture"] == "gptneox"
    assert told["metadata"]["gptneox.block_count"] == 2
    assert len(told["metadata"]["tokenizer.ggml.tokens"]) == 300
    assert {"name", "shape", "type", "bytes"} <= set(told["tensors"][0])
    head = next(t for t in told["tensors"] if t["name"] == "output.weight")
    assert head == {"name": "output.weight", "shape": [64, 300], "type": "q8_0", "bytes": 20400}
    assert 8 < told["bits_per_weight"] < 9


def test_inspect_as_text(run: Cli, converted: Converter) -> None:
    result = run("inspect", converted(kind="q8_0"))
    assert (result.code, result.err) == (0, "")
    for part in ("gptneox.block_count", "300 values", "blk.1.ffn_down.weight", "bits per weight"):
        assert part in result.out
    assert "\x1b" not in result.out


def test_inspect_draws_no_escape_sequences_of_a_file(run: Cli, tmp_path: Path) -> None:
    from helpers import RawGguf, string_key

    raw = RawGguf([string_key("general.architecture", "x"), string_key("a", "\x1b]0;title\x07b")])
    (tmp_path / "sly.gguf").write_bytes(raw.bytes())
    assert "\x1b" not in run("inspect", tmp_path / "sly.gguf").out


# ---- generate


def test_stdout_is_the_text_alone(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    fake(saying(" grün\n東京"))
    result = run("generate", "m.gguf", "-p", "hello")
    assert (result.code, result.out) == (0, " grün\n東京\n")
    assert result.err.startswith("[load 0.25 s | prompt 5 of 5 tokens")
    assert result.err.rstrip().endswith("| end]")
    assert result.err.count("\n") == 1


def test_generate_json(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    fake(saying("hi\n"))
    result = run("generate", "m.gguf", "-p", "hello", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.out.count("\n") == 1
    told = json.loads(result.out)
    assert told["text"] == "hi\n"
    assert told["tokens"] == [*b"hi\n", END]
    assert told["finish_reason"] == "end"
    assert (told["prompt_tokens"], told["completion_tokens"]) == (5, 4)
    timings = {"load_s", "first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s"}
    assert timings <= set(told["timings"])
    assert told["timings"]["load_s"] == 0.25
    assert told["memory"]["peak_rss_bytes"] > 0
    assert set(told["speculative"]) == {"drafted", "accepted"}


@pytest.mark.parametrize("way", ["-p", "-f", "-f -", "stdin"])
def test_where_a_prompt_comes_from(
    run: Cli,
    fake: Callable[..., FakeEngine],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    engine = fake(saying("!"))
    text = "grün\n 東京 "
    arguments: list[object] = []
    if way == "-p":
        arguments = ["-p", text]
    elif way == "-f":
        (tmp_path / "prompt.txt").write_bytes(text.encode() + b"\n")
        arguments = ["-f", tmp_path / "prompt.txt"]
    else:
        arguments = ["-f", "-"] if way == "-f -" else []
        give_stdin(monkeypatch, text.encode() + b"\n")
    assert run("generate", "m.gguf", *arguments).out == "!\n"
    assert bytes(engine.tokens[:-1]).decode() == text


def test_a_prompt_of_invalid_utf8(
    run: Cli, converted: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["generate", converted(), "-n", 4, "--temperature", 0, "--threads", 1, "--json"]
    told = []
    for data in (b"a\xff\xc3(", "a\ufffd\ufffd(".encode()):
        give_stdin(monkeypatch, data)
        result = run(*command)
        assert result.code == 0
        told.append(json.loads(result.out))
    assert told[0]["tokens"] == told[1]["tokens"]
    assert told[0]["prompt_tokens"] == told[1]["prompt_tokens"] == 8


def test_no_prompt_on_a_terminal(
    run: Cli, fake: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(saying("!"))
    main, terminal = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, "r"))
    result = run("generate", "m.gguf")
    os.close(main)
    assert "no prompt" in result.error
    assert result.code == 2


def test_options_reach_the_generation(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    fake(saying("one two three"))
    result = run("generate", "m.gguf", "-p", "x", "--stop", "three", "--stop", "two", "--json")
    told = json.loads(result.out)
    assert (told["text"], told["finish_reason"]) == ("one ", "stop")
    fake(saying("one two three"))
    told = json.loads(run("generate", "m.gguf", "-p", "x", "-n", 2, "--json").out)
    assert (told["text"], told["finish_reason"]) == ("on", "length")


def test_settings_reach_the_engine(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Watched(FakeEngine):
        def new_sampler(self, settings: Any) -> Any:
            seen.append(settings)
            return super().new_sampler(settings)

    def load(path: Path, settings: Any) -> tuple[FakeEngine, float]:
        seen.append(settings)
        return Watched(saying("x")), 0.0

    monkeypatch.setattr(loading, "load_engine", load)
    run("generate", "m.gguf", "-p", "x", "--temperature", 0.5, "--top-k", 7, "--top-p", 0.6,
        "--min-p", 0.2, "--repeat-penalty", 1.3, "--seed", 9, "--context", 99, "--load", "fast",
        "--threads", 3)  # fmt: skip
    engine, sampling = seen
    assert (engine.context, engine.load, engine.threads) == (99, "fast", 3)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 7, 0.6)
    assert (sampling.min_p, sampling.repeat_penalty, sampling.seed) == (0.2, 1.3, 9)


def test_a_seed_repeats_a_run(run: Cli, converted: Converter) -> None:
    command = ["generate", converted(), "-p", "The fox", "-n", 24, "--threads", 1, "--json"]
    texts = [json.loads(run(*command, "--seed", s).out)["text"] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_context_beyond_the_trained_one_is_noted(run: Cli, converted: Converter) -> None:
    result = run("generate", converted(), "-p", "x", "-n", 1, "--context", 256, "--threads", 1)
    assert result.code == 0
    assert "note: --context 256: the model was trained for 128 tokens" in result.err


def test_the_engine_is_closed(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    closed = []
    engine = fake(saying("x"))
    engine.close = lambda: closed.append(1)  # type: ignore[method-assign]
    run("generate", "m.gguf", "-p", "x")
    run("generate", "m.gguf", "-p", "y" * 600)
    assert len(closed) == 2


def test_no_limit_but_the_context(run: Cli, fake: Callable[..., FakeEngine]) -> None:
    fake(lambda tokens: ord("a"), n_ctx=300)
    told = json.loads(run("generate", "m.gguf", "-p", "x", "-n", "-1", "--json").out)
    assert (told["finish_reason"], told["completion_tokens"]) == ("context", 300)


def test_minus_one_is_a_random_seed(run: Cli, converted: Converter) -> None:
    line = ["generate", converted(), "-p", "x", "-n", 24, "--threads", 1, "--seed", "-1"]
    assert len({run(*line).out for _ in range(4)}) > 1


# ---- what is piped in


@pytest.mark.parametrize(
    ("words", "piped", "prompt"),
    [
        (["-p", "Sum up:"], b"", "Sum up:"),
        (["-p", "Sum up:"], b"\n \n", "Sum up:"),
        (["-p", "Sum up:"], b"One.\nTwo.\n\n", "One.\nTwo.\n\nSum up:"),
        (["-p", ""], b"One.\n", "One."),
        ([], b"One.\n\n", "One.\n"),
    ],
)
def test_a_pipe_stands_in_front_of_the_prompt(
    run: Cli, fake: Callable[..., FakeEngine], words: list[str], piped: bytes, prompt: str
) -> None:
    engine = fake(saying("."))
    assert run("generate", "m.gguf", *words, stdin=piped).code == 0
    assert engine.tokens == [*prompt.encode(), ord(".")]


def test_a_file_counts_and_no_input_does_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from infer_os.terminal import console

    (tmp_path / "text").write_text("x")
    for name, counts in ((tmp_path / "text", True), (os.devnull, False)):
        with open(name) as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            assert console.stdin_is_piped() is counts
    assert console.stdin_is_piped() is False  # closed
    monkeypatch.setattr(sys, "stdin", None)
    assert console.stdin_is_piped() is False


def test_a_pipe_that_stays_open_says_what_is_waited_for(converted: Converter) -> None:
    line = ["generate", converted(), "-p", "x", "-n", "2", "--threads", "1"]
    running = subprocess.Popen(
        [sys.executable, "-m", "infer_os.cli", *map(str, line)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stderr is not None
    assert running.stderr.readline().startswith(b"waiting for the end of the piped input")
    out, _ = running.communicate(b"", timeout=60)
    assert (running.returncode, len(out) > 0) == (0, True)


# ---- as real processes


def test_a_whole_way_in_processes(tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    done = process("convert", PARALLEL, "-o", target, "--type", "f16", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["bytes"] == target.stat().st_size
    done = process(
        "generate", target, "-n", "8", "--temperature", "0", "--threads", "1", stdin=b"The fox\n"
    )
    assert done.returncode == 0
    assert done.stdout.endswith(b"\n")
    assert done.stderr.startswith(b"[load ")
    done = process("inspect", tmp_path / "none.gguf")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("infer-os")
    done = subprocess.run([command, "--version"], capture_output=True, check=True)
    assert done.stdout.startswith(b"infer-os ")


@pytest.mark.parametrize("command", ["generate", "inspect", "inspect --json", "convert --json"])
def test_a_reader_that_is_gone(converted: Converter, tmp_path: Path, command: str) -> None:
    arguments = {
        "generate": [converted(), "-p", "x", "-n", "5", "--threads", "1"],
        "inspect": [converted()],
        "inspect --json": [converted(), "--json"],
        "convert --json": [PARALLEL, "-o", tmp_path / "m.gguf", "--json"],
    }[command]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as nowhere:
        done = subprocess.run(
            [sys.executable, "-m", "infer_os.cli", command.split()[0], *map(str, arguments)],
            stdout=nowhere, stderr=subprocess.PIPE, check=False, timeout=60,
        )  # fmt: skip
    # click answers EPIPE with 1 before our own handler sees it
    assert done.returncode in (1, 141)
    assert done.stderr == b""


def test_a_reader_that_goes_away(converted: Converter) -> None:
    command = f"{sys.executable} -m infer_os.cli generate {converted()} -p x -n 50000 --context "
    done = subprocess.run(
        ["bash", "-c", command + "60000 --threads 1 | head -c 1"],
        capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert len(done.stdout) == 1
    assert b"Traceback" not in done.stderr
    assert b"rror" not in done.stderr


def test_an_interrupt_of_generate(converted: Converter) -> None:
    command = ["generate", converted(), "-p", "The fox", "-n", "1000000", "--context", "100000",
               "--threads", "1"]  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "infer_os.cli", *map(str, command)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout
        first = running.stdout.read(20)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert len(first) == 20
    assert out.endswith(b"\n")
    assert b"Traceback" not in err
    assert b"| interrupt]" in err


def test_an_interrupt_of_convert_leaves_nothing(tmp_path: Path) -> None:
    folder = copy_checkpoint(PARALLEL, tmp_path / "checkpoint")
    (tmp_path / "out").mkdir()
    script = (
        "import os, signal, sys\n"
        "from infer_os import cli\n"
        "from infer_os.terminal import console\n"
        "from infer_os.convert import pipeline\n"
        "real = pipeline.convert\n"
        "def at_half(done, total):\n"
        "    if done > total / 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "pipeline.convert = lambda settings, progress: real(settings, at_half)\n"
        f"sys.argv = ['infer-os', 'convert', {str(folder)!r}, '-o', {str(tmp_path / 'out/m')!r}]\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


# ---- chat on a pipe


def test_chat_reads_lines(
    run: Cli, fake: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(saying(" hello"))
    give_stdin(monkeypatch, b"hi\n\n/nonsense here\n/reset\n/help\n/stats\n/quit\nnever read\n")
    result = run("chat", "m.gguf")
    assert (result.code, result.out) == (0, "hello\n")
    assert "/nonsense: no such command" in result.err
    assert "The conversation starts over." in result.err
    assert re.search("/reset +forget", result.err)
    assert "5 tokens" not in result.out
    assert "| end]" in result.err


def test_chat_of_invalid_utf8(fake: Callable[..., FakeEngine], converted: Converter) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = process(
        "chat", converted(), "-n", "3", "--threads", "1", stdin=b"a\xff\n", env=environment
    )
    assert done.returncode == 0
    assert b"error" not in done.stderr


def test_chat_goes_on_after_a_message_that_does_not_fit(
    run: Cli, fake: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(saying(" ok"), 60)
    give_stdin(monkeypatch, b"x" * 80 + b"\nhi\n")
    result = run("chat", "m.gguf")
    assert (result.code, result.out) == (0, "ok\n")
    assert "no room" in result.err


def test_chat_says_that_turns_were_dropped(
    run: Cli, fake: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(saying(" ok"), 60)
    give_stdin(monkeypatch, b"one\ntwo\nthree\nfour\n")
    result = run("chat", "m.gguf")
    assert result.out == "ok\n" * 4
    assert "the oldest turn was dropped" in result.err


# ---- chat on a terminal

# what prompt_toolkit sends whenever it begins to read a line: the mode of bracketed paste
PROMPT = re.escape("\x1b[?2004h")
PROMPT_ENDS = re.escape("\x1b[?2004l")


@pytest.fixture
def terminal(converted: Converter, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a chat on a pty."""
    open_ones = []

    def start(columns: int, *arguments: str) -> Any:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "infer_os.cli", "chat", str(converted()), "--threads", "1", *arguments],
            dimensions=(24, columns), encoding="utf-8", codec_errors="replace", timeout=30,
            env={**os.environ, "TERM": "xterm", "INFER_OS_CACHE": str(tmp_path)},
        )  # fmt: skip
        open_ones.append(child)
        child.expect(PROMPT)
        return child

    yield start
    for child in open_ones:
        with contextlib.suppress(Exception):
            child.close(force=True)


@pytest.mark.parametrize("columns", [80, 40])
def test_a_chat(terminal: Callable[..., Any], columns: int) -> None:
    child = terminal(columns, "-n", "5", "--seed", "1")
    for line, answer in (
        ("/help", "Alt-Enter"),
        ("Hello there, is this line long enough to wrap?", "wrap"),
        ("/stats", r"(?s)5\s*tokens.*length"),
        ("/nothing", "no such command"),
        ("/reset", "starts over"),
        ("again", "again"),
        ("/stats", r"(?s)5\s*tokens.*length"),
    ):
        child.send(line + "\r")
        child.expect(answer)
        child.expect(PROMPT)
    child.sendeof()
    child.expect_exact(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


@pytest.mark.parametrize("columns", [80, 40])
def test_an_interrupt_ends_the_reply_and_not_the_chat(
    terminal: Callable[..., Any], columns: int
) -> None:
    child = terminal(columns, "-n", "1000000", "--context", "60000", "--seed", "1")
    child.send("Tell me a very long story\r")
    child.expect(PROMPT_ENDS)
    # the terminal takes Ctrl-C for a letter until prompt_toolkit has given it back
    while not termios.tcgetattr(child.child_fd)[3] & termios.ISIG:
        time.sleep(0.01)
    child.expect("(?s).{30}")
    child.sendintr()
    child.expect(r"\(stopped\)")
    assert "Traceback" not in child.before
    child.expect(PROMPT)
    child.send("/help\r")
    child.expect(r"forget the\s+conversation")
    child.expect(PROMPT)
    child.sendintr()
    child.expect("Ctrl-D or /quit")
    child.expect(PROMPT)
    child.send("/quit\r")
    child.expect_exact(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_an_interrupt_between_two_prompts_does_not_end_the_chat(
    run: Cli, fake: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(saying(" hello"))
    starts = iter([KeyboardInterrupt, None])

    def entries(*_: object) -> Iterator[Entry]:
        yield Entry("hi", False)
        problem = next(starts)
        if problem:
            raise problem
        yield Entry("/quit", True)

    monkeypatch.setattr(conversation, "read_entries", entries)
    main, terminal = os.openpty()
    monkeypatch.setattr(sys, "stdin", os.fdopen(terminal, "r"))
    result = run("chat", "m.gguf")
    os.close(main)
    assert (result.code, result.out) == (0, "hello\nhello\n")


def test_an_interrupt_ends_a_chat_on_a_pipe(
    run: Cli, fake: Callable[..., FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(*_: object) -> Iterator[Entry]:
        yield Entry("hi", False)
        raise KeyboardInterrupt

    fake(saying(" hello"))
    monkeypatch.setattr(conversation, "read_entries", entries)
    give_stdin(monkeypatch, b"")
    assert run("chat", "m.gguf").code == 130


def test_memory_that_does_not_come_is_one_line(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: object, **_settings: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loading, "load_engine", fail)
    done = run("generate", __file__, "-p", "x")
    assert (done.code, done.out) == (1, "")
    assert done.err == "error: not enough memory (ulimit -v, or a container's?)\n"
