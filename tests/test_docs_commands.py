"""Every command of the README and the guides, run by a shell as it is printed, without a network.

A page's lines run in order, in a folder of its own, against a hub on this machine whose models have
the published names and random weights. A reader's values stand in the places of a synopsis, and
options that the line leaves open are set so that it takes little time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pexpect
import pytest
import typer
from command_lines import CommandLine, complaint
from helpers import REPOSITORY, Converter
from hub_fixtures import Desk, client_environment
from hub_server import HubServer
from published_models import PUBLISHED, serve
from shell_lines import ShellLine, blocks, command_of, filled, shell_lines, with_options

from infer_os.cli import app
from infer_os.models.bundled import DRAFT, HELD_OUT, TARGET

README = REPOSITORY / "README.md"
#: commands.md is what the commands say of themselves: its examples are the page --help.
GUIDES = sorted(p for p in (REPOSITORY / "docs").glob("*.md") if p.name != "commands.md")
ROOT: Any = typer.main.get_command(app)

#: Lines that no test can run, or not here, and why. Nor is any ``make``: it installs or compiles,
#: or is these tests. Its targets are looked up, and the demo that ``make demo`` ends with is run.
NOT_RUN = {
    "infer-os run MODEL": "talks on a terminal; tests/test_run.py does",
    "pip install 'infer-os[ray]'": "installs", "pip install 'infer-os[parquet]'": "installs",
    'pip install "infer-os[plot]"': "installs", "pip install 'infer-os[lm-eval]'": "installs",
    "python -m infer_os.lm_harness run --model infer-os --tasks TASK --model_args "
    "pretrained=gpt-j-6B,max_length=2048": "needs lm_eval; tests/test_lm_harness.py runs it",
    "pip install 'lm_eval[api]' transformers": "installs",
    "lm_eval run --model local-completions --tasks TASK --model_args "
    "base_url=http://127.0.0.1:8080/v1/completions,model=gpt-j-6B,tokenizer=EleutherAI/gpt-j-6b,"
    "max_length=2048": "needs a server; tests/test_lm_harness.py has one",
    "pip install --force-reinstall --no-deps llama-cpp-python==0.3.36": "installs",
    "pip install --force-reinstall --no-deps infer-os": "installs",
    "sudo apt install build-essential python3-venv": "installs",
    "pip install .": "installs", "python3 -m venv infer-os": "as the next",
    "infer-os/bin/python -m pip install --no-index --find-links wheelhouse infer-os":
    "needs a wheelhouse; make wheelhouse-check installs one",
    "ray start --head": "needs infer-os[ray]; tests/runtime/batch/test_ray_backend.py has clusters",
    "ray start --address=192.168.1.10:6379": "needs other machines", "ray status": "as ray start",
    "ray stop": "as ray start",
    "infer-os batch MODEL -i prompts.jsonl -o answers.jsonl --ray auto": "as ray start",
    "infer-os run OWNER/NAME-GGUF:Q4_K_M": "needs such a repository; tests/store/test_ready.py has",
    "infer-os pull OWNER/NAME-GGUF:auto": "as run OWNER/NAME-GGUF:Q4_K_M",
    "infer-os convert gpt-j-6B --lora OWNER/ADAPTER --lora ./style:0.5 -o tuned.gguf":
    "needs such adapters; tests/store/test_lora.py has",
    'infer-os run gpt-j-6B --lora OWNER/ADAPTER "Once upon a time"': "as convert --lora",
    'infer-os run gpt-j-6B --adapter OWNER/POET "Once upon a time"':
    "needs such adapters; tests/test_cli_adapters.py has",
    "infer-os chat gpt-j-6B --adapter poet=OWNER/POET --adapter clerk=./clerk:0.5":
    "as run --adapter",
    "infer-os serve austen.gguf": "as serve MODEL",
    "infer-os serve MODEL": "runs until a signal; tests/serve/test_serve_command.py does",
    "infer-os serve model.gguf --port 8080": "as serve MODEL",
    "infer-os serve MODEL --host 0.0.0.0 --api-key-file key": "as serve MODEL",
    "infer-os ps": "needs a server; tests/serve/test_ps_command.py has one",
    "infer-os ps --server http://127.0.0.1:8080": "as ps",
    "python benchmarks/quality.py": "measures for minutes",
    "python benchmarks/ladder.py": "measures for minutes",
    "infer-os bench --techniques --depths 512 --tokens 64": "as in bench.md, with larger sizes",
    "infer-os bench q4_0.gguf --techniques --baseline f16.gguf --depths 128 --tokens 8 "
    "--context 512": "as in bench.md, with larger sizes",
}  # fmt: skip

#: What a reader would put into the places of a synopsis, by the option before them.
PLACES = {
    r"(?<=--system )TEXT": '"Answer briefly."', r"(?<=--style )NAME": "dialogue",
    r"(?<=--calibrate )TEXT": "text.txt", r"(?<=--session )FILE": "talk.session",
    r"(?<=--search )TEXT": "starcoder", r"(?<=--rows )FILE": "rows.jsonl",
    r"(?<=--report )DIR": "report",
    r"(?<=--text )FILE": "text.txt", r"-i FILE -o FILE": "-i prompts.jsonl -o answers.jsonl",
    r"(?<=-o )FILE": "made.gguf", r"(?<=--type )T\b": "q4_0", r"(?<=--parallel )N": "2",
    r"(?<=models show )NAME": "gpt2-large", r"(?<=models rm )NAME": "gpt2-large",
    r"(?<=infer-os )COMMAND": "generate",
    r"(?<=eval )(?:FOLDER|MODEL)": "models/bundled/austen-draft", r"(?<=plan )MODEL": "gpt-j-6B",
    r"SOURCE": "models/bundled/austen-6m", r"MODEL": "austen.gguf",
}  # fmt: skip

#: What makes a command quick; the plans are those of the published sizes, so that a small machine
#: must believe that it is large.
_ENGINE = "--threads 1 --memory 64G"
SHORTER = {
    "generate": f"-n 4 {_ENGINE}", "chat": f"-n 4 {_ENGINE}", "run": f"-n 4 {_ENGINE}",
    "batch": f"-n 4 --parallel 2 {_ENGINE}", "convert": "--threads 1", "demo": "--threads 1",
    "score": _ENGINE, "embed": _ENGINE, "eval": "--windows 1 --window 32 --threads 1",
    "bench": f"--depths 0,16 --batch 1,2 --repeats 1 --prompt-tokens 8 --tokens 4 {_ENGINE}",
    "bench --techniques": f"--depths 32 --repeats 1 --tokens 4 {_ENGINE}",
}  # fmt: skip

#: What the model wrote, in what a command prints: another CPU may round differently.
WRITTEN = {"generate": r"(?s)^.*?\n(?=\[load)", "demo": r"(?s)(?<=that ).*?(?=\n\n)"}
#: What depends on the machine.
MEASURED = (
    (r"\b[\d.]+ s\b", "# s"), (r"at [\d.]+/s", "at #/s"), (r"peak RSS [\d.]+ MB", "peak RSS #"),
    (r"[\d.]+ MB +\d+$", "# MB #"), (r" +", " "), (r"─+", "─"),
)  # fmt: skip
_INPUT = ({"id": 1, "prompt": "It is a truth"}, {"id": 2, "prompt": "She was"})
_TO_SCORE = ({"id": 1, "context": "It is", "continuation": " a truth"}, {"id": 2, "text": "She"})
_SAID = "Elizabeth looked at him, and said,"
_PASTE_ON, _PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"


def help_page() -> str:
    """The examples of all help pages, as a page."""
    docs = [command.help or "" for command in ROOT.commands.values()]
    found = [m[1] for doc in docs for m in re.finditer(r"Example: (.*?)(?:\n\s*\n|\Z)", doc, re.S)]
    return "```sh\n" + "".join(" ".join(text.split()) + "\n" for text in found) + "```\n"


#: Needs gdb, perf and a checkout with its build folder.
DEBUGGING = REPOSITORY / "docs" / "debugging.md"
PAGES = {path.relative_to(REPOSITORY).as_posix(): path.read_text("utf-8")
         for path in (README, *GUIDES) if path != DEBUGGING} | {"--help": help_page()}  # fmt: skip


def remarkless(line: str) -> str:
    """Without a remark, as NOT_RUN lists it."""
    return re.sub(r"\s+# .*", "", line).strip()


def to_run(page: str) -> list[ShellLine]:
    """The lines of a page that a test runs.

    A sentence may name a command without what it needs, which is no line to type; and a line of a
    sentence that stands elsewhere, too, runs once.
    """
    known: set[str] = set()
    for text in PAGES.values():
        if text == page:
            break
        known |= {line.text for line in shell_lines(text)}
    found = []
    for line in shell_lines(page):
        is_mention = complaint(ROOT, CommandLine(line.text, True)) is not None
        if not line.is_span or (line.text not in known and not is_mention):
            found.append(line)
        known.add(line.text)
    return [
        line for line in found
        if remarkless(line.text) not in NOT_RUN and not line.text.startswith("make ")
    ]  # fmt: skip


# ---- where they run


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A hub and a cache for all pages."""
    place = tmp_path_factory.mktemp("docs")
    made = Desk(HubServer(), place / "cache", place / "out")
    serve(
        made.server.repositories, place / "hub",
        "gpt-neox-20b", "gpt-j-6B", "gpt2-large", "distilgpt2",
    )  # fmt: skip
    pythia = PUBLISHED[0].write(place / "hub" / "pythia-410m")
    made.server.repositories["EleutherAI/pythia-410m"] = {"main": pythia, "step3000": pythia}
    with made.server:
        yield made


@dataclass(frozen=True)
class Shell:
    """A folder as a reader's, and the variables that send programs to the hub of the tests."""

    folder: Path
    variables: dict[str, str]

    def run(self, line: str) -> tuple[int, str]:
        """Without a terminal: the exit code, and both streams."""
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line], cwd=self.folder, env=self.variables,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=120,
        )  # fmt: skip
        return ended.returncode, ended.stdout

    def talk(self, line: str) -> tuple[int, str]:
        """On a terminal: one message, then Ctrl-D."""
        child: Any = pexpect.spawn(
            "bash", ["-c", line], cwd=self.folder, env={**self.variables, "TERM": "xterm"},
            dimensions=(40, 120), timeout=120, encoding="utf-8",
        )  # fmt: skip
        seen = ""
        for typed in (_SAID + "\r", "\x04"):
            child.expect_exact([_PASTE_ON, pexpect.EOF])
            seen += child.before
            if not child.isalive() or child.after is pexpect.EOF:
                break
            child.send(typed)
            child.expect_exact(_PASTE_OFF)
            seen += child.before
        child.expect(pexpect.EOF)
        child.close()
        return child.exitstatus, (seen + child.before).replace("\r\n", "\n")


@pytest.fixture(scope="module")
def variables(desk: Desk) -> dict[str, str]:
    """An environment with the hub of the tests, and our commands on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # on a busy machine, threads that spin wait for each other
    more = {"PATH": path, "OMP_WAIT_POLICY": "PASSIVE"}
    return client_environment(desk, desk.cache.parent) | more


@pytest.fixture
def shell(
    variables: dict[str, str], converted: Converter, tmp_path: Path, request: pytest.FixtureRequest
) -> Shell:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    bundled = tmp_path / "models" / "bundled"
    bundled.mkdir(parents=True)
    for model in (TARGET, DRAFT):
        (bundled / model.name).symlink_to(model)
    for text in (tmp_path / "text.txt", bundled / HELD_OUT.name):
        text.write_text(HELD_OUT.read_text("utf-8")[:20_000])
    for name, records in (("prompts", _INPUT), ("records", _TO_SCORE), ("texts", _TO_SCORE[1:])):
        lines = "".join(json.dumps(one) + "\n" for one in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    page = PAGES[request.node.callspec.id]
    lines = "\n".join(filled(line.text, PLACES) for line in to_run(page))
    made = set(re.findall(r"-o ([\w.-]+\.gguf)", lines))
    for name in set(re.findall(r"[\w.-]+\.gguf", lines)) - made:
        kind = next((k for k in ("f16", "q4") if k in name), "q8_0").replace("q4", "q4_0")
        (tmp_path / name).symlink_to(converted(DRAFT if name == "small.gguf" else TARGET, kind))
    return Shell(tmp_path, variables)


# ---- the lines


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES.keys())
def test_every_line_runs(shell: Shell, page: str) -> None:
    for line in to_run(page):
        command, text = command_of(line.text), quick(line)
        is_chat = command == "chat" or "--interactive" in text
        code, output = (shell.talk if is_chat and "|" not in text else shell.run)(text)
        assert code == 0, f"{text}\n{output}"
        assert "Traceback" not in output, f"{text}\n{output}"
        assert_shown(line.shown, output, command)


def quick(line: ShellLine) -> str:
    """What is run: with a reader's values, and as short as the page leaves it open."""
    text, command = filled(line.text, PLACES), command_of(line.text)
    kind = "bench --techniques" if "--techniques" in text else command
    # what is printed is compared with what the page shows; of a chat, that is its beginning
    if kind not in SHORTER or "--help" in text or (line.shown and command != "chat"):
        return text
    return with_options(text, SHORTER[kind])


def test_the_demo_prints_what_the_readme_shows(desk: Desk, variables: dict[str, str]) -> None:
    shown = next(b.text for b in blocks(PAGES["README.md"]) if b.text.startswith("q4_0 writes:"))
    line = with_options("infer-os demo", SHORTER["demo"])
    code, output = Shell(desk.cache.parent, variables).run(line)
    assert code == 0, output
    assert_shown(shown, output, "demo")


def assert_shown(shown: str, output: str, command: str) -> None:
    """Each line that a page shows is printed, in that order, apart from what was measured."""
    printed = iter(stable(output, command))
    for line in stable(shown, command):
        assert line in printed, f"the page shows {line!r}; printed was:\n{output}"


def stable(text: str, command: str) -> list[str]:
    """The lines of an output without what another machine prints otherwise."""
    if command in WRITTEN:
        text = re.sub(WRITTEN[command], "", text)
    # a chat's prompt, and what a person types there
    text = re.sub(r"^> .*", "", text, flags=re.M)
    for pattern, mark in MEASURED:
        text = re.sub(pattern, mark, text, flags=re.M)
    return [line.strip() for line in text.splitlines() if line.strip()]


def test_the_program_in_the_readme_runs(desk: Desk, variables: dict[str, str]) -> None:
    program = next(b.text for b in blocks(PAGES["README.md"]) if b.language == "python")
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=desk.cache.parent, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert [ended.stdout.count(f"\n{number} ") for number in (1, 2)] == [1, 1]


# ---- the lists


def test_every_block_says_what_it_is() -> None:
    languages = {(name, block.language) for name, page in PAGES.items() for block in blocks(page)}
    assert {one for one in languages if one[1] not in ("sh", "console", "text", "python")} == set()


def test_what_is_not_run_still_stands_in_a_page() -> None:
    found = {remarkless(line.text) for page in PAGES.values() for line in shell_lines(page)}
    assert set(NOT_RUN) - found == set()


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    lines = [line.text for page in PAGES.values() for line in shell_lines(page)]
    named = {line.split()[1] for line in lines if line.startswith("make ")}
    assert {"demo", "test"} <= named
    assert named - targets == set()


def test_every_place_of_a_synopsis_is_filled() -> None:
    lines = [filled(line.text, PLACES) for page in PAGES.values() for line in to_run(page)
             if command_of(line.text)]  # fmt: skip
    assert len(lines) > 40
    bare = [re.sub(r"'[^']*'|\"[^\"]*\"", "", line) for line in lines]
    assert [line for line in bare if re.search(r"\b[A-Z]{2,}\b", line)] == []


# ---- the reading of lines


def test_lines_are_found_in_order_with_what_is_shown() -> None:
    page = (
        "Say `infer-os plan x` or `/help`.\n\n```sh\ninfer-os a \\\n  b   # why\n```\n\n"
        "```console\n$ infer-os c \\\n  1\none\n\ntwo\n$ infer-os d\n```\n\n    infer-os e\n\n"
        "    import this\n\n```text\ninfer-os f\n```\n"
    )
    assert list(shell_lines(page)) == [
        ShellLine("infer-os a b   # why"), ShellLine("infer-os c 1", "one\n\ntwo\n"),
        ShellLine("infer-os d"), ShellLine("infer-os e"), ShellLine("infer-os plan x", "", True),
    ]  # fmt: skip


def test_options_are_added_where_a_line_leaves_them_open() -> None:
    line = "printf 'x' | infer-os --debug chat m.gguf -n 2   # why"
    assert command_of(line) == "chat"
    expected = "printf 'x' | infer-os --debug chat m.gguf -n 2 --threads 1   # why"
    assert with_options(line, "-n 4 --threads 1") == expected
    assert with_options("infer-os chat m > a", "-n 4") == "infer-os chat m -n 4 > a"
    synopsis = "infer-os batch M -i FILE [--parallel N|auto] [--resume]"
    places = {r"(?<=--parallel )N": "2", r"FILE": "x"}
    assert filled(synopsis, places) == "infer-os batch M -i x --parallel 2 --resume"


def test_another_output_than_the_page_shows_is_seen() -> None:
    shown = "a table  1.2 s\nsecond line\n"
    assert_shown(shown, "note\na table 9 s\nbetween\nsecond line\n", "plan")
    for printed in ("a table 9 s\n", "second line\na table 9 s\n", "a tabel 9 s\nsecond line\n"):
        with pytest.raises(AssertionError, match="the page shows"):
            assert_shown(shown, printed, "plan")
