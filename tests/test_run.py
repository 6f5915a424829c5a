"""From a name to a conversation: every command line of the guide, against a local hub."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from helpers import PARALLEL, copy_checkpoint, set_config
from hub_fixtures import Desk, client_environment, environment
from in_process import Cli, runner
from published_models import PUBLISHED, serve

from infer_os import cli
from infer_os.native.gguf_file import read_gguf_header

GUIDE = {
    "EleutherAI/gpt-neox-20b": "EleutherAI/gpt-neox-20b",
    "EleutherAI/gpt-j-6B": "EleutherAI/gpt-j-6B",
    "bigscience/bloom-7b1": "bigscience/bloom-7b1",
    "microsoft/DialoGPT-large": "microsoft/DialoGPT-large",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-medium": "openai-community/gpt2-medium",
    "distilgpt2": "distilbert/distilgpt2",
}
#: Plans are made for the true sizes: no machine of a test need have that memory.
ROOM = ("--memory", "64G")
SHORT = ("-n", "4", "--threads", "1", "--seed", "1")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with environment(tmp_path, monkeypatch) as made:
        yield made
    assert made.server.errors == []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Cli a command in this process, with a pipe as stdin."""
    call = runner(monkeypatch, capfdbinary)
    return lambda *arguments, stdin=b"": call(*arguments, stdin=stdin)


def conversions(desk: Desk) -> list[str]:
    """The GGUF files in the cache, from its models/ folder."""
    return sorted(
        path.relative_to(desk.cache / "models").as_posix() for path in desk.cache.rglob("*.gguf")
    )


def unplug(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


# ---- the command lines of the guide


@pytest.mark.parametrize("bits", ["--use-8bit", "--use-4bit"])
@pytest.mark.parametrize("name", GUIDE)
def test_a_command_line_of_the_guide(
    desk: Desk, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bits: str
) -> None:
    hub_id, kind = GUIDE[name], {"--use-8bit": "q8_0", "--use-4bit": "q4_0"}[bits]
    short = hub_id.rpartition("/")[2]
    serve(desk.server.repositories, tmp_path / "hub", short)
    line = ["run", "--model", name, bits, "--interactive", *ROOM, *SHORT]
    first = run(*line, stdin=b"Hello\nAnd then?\n")
    assert first.code == 0, first.err
    assert f"{hub_id}: downloading and converting to {kind}, once, into" in first.err
    revision = next(model.revision for model in PUBLISHED if model.id == hub_id)
    made = f"hub/{hub_id.replace('/', '--')}/{revision}/{short}-{kind}.gguf"
    assert conversions(desk) == [made]
    # nothing but the conversion stays: no shard, no lock's folder, no journal
    assert desk.cached() == [".lock", Path(made).name]
    asked = {request.file for request in desk.server.requests}
    assert not {"tf_model.h5", "README.md"} & asked
    header = read_gguf_header(desk.cache / "models" / made)
    assert header.metadata["inferos.source.repository"] == hub_id

    desk.server.requests.clear()
    unplug(monkeypatch)
    second = run(*line, stdin=b"Hello\nAnd then?\n")
    assert second.code == 0, second.err
    assert (second.out, desk.server.requests) == (first.out, [])
    assert f"{hub_id}: {kind} from the cache; the hub was not asked" in second.err
    # the same model by its short name, its own case, and for another command
    again = run("generate", short.upper(), "-p", "Hello", *ROOM, *SHORT, "--json")
    assert json.loads(again.out)["prompt_tokens"] > 0


def test_the_published_style_is_used(desk: Desk, run: Cli, tmp_path: Path) -> None:
    from infer_os.models.catalog import find_model, style_for
    from infer_os.models.styles import STYLES

    serve(desk.server.repositories, tmp_path / "hub", "DialoGPT-large")
    run("run", "--model", "DialoGPT-large", "-p", "Hi", *SHORT)
    header = read_gguf_header(next(desk.cache.rglob("*.gguf")))
    model = find_model("DialoGPT-large")
    assert model is not None
    known = model.style if model.style in STYLES else "dialogue"
    assert style_for(header.metadata) == known


def test_an_answer_goes_to_stdout_and_ends(desk: Desk, run: Cli, tmp_path: Path) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    line = ["run", "--model", "distilgpt2", *SHORT]
    prompted = run(*line, "--prompt", "Hello there")
    piped = run(*line, stdin=b"Hello there\n")
    assert prompted.code == piped.code == 0
    assert prompted.out == piped.out
    assert prompted.out.endswith("\n")
    for words in (["distilgpt2", "Hello there"], ["--model", "distilgpt2", "Hello there"],
                  ["distilgpt2", "-p", "Hello there"]):  # fmt: skip
        assert run("run", *words, *SHORT).out == prompted.out
    assert "(cut at 4 tokens; -n raises that)" in prompted.err
    # a pipe stands in front of what was typed
    joined = run("run", "distilgpt2", "in short?", *SHORT, stdin=b"A long\ntext\n\n")
    assert joined.out == run("run", "distilgpt2", "A long\ntext\n\nin short?", *SHORT).out
    assert joined.out != run("run", "distilgpt2", "in short?", *SHORT).out
    # one turn, in the model's frame: more tokens than the message has
    plain = run(*line, "--prompt", "Hello there", "--style", "plain")
    counts = [int(r.err.split("prompt ")[1].split()[0]) for r in (prompted, plain)]
    assert counts[0] > counts[1]
    # a message of several lines is one message
    both = [run(*line, stdin=text).err for text in (b"one\n", b"one\ntwo three four\n")]
    assert [err.count("[prompt") for err in both] == [1, 1]
    one, four = (int(err.split("prompt ")[1].split()[0]) for err in both)
    assert four > one + 5


def test_a_prompt_opens_a_conversation(desk: Desk, run: Cli, tmp_path: Path) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    line = ["run", "--model", "distilgpt2", *SHORT, "--interactive"]
    talked = run(*line, stdin=b"Hello\n/stats\n")
    opened = run(*line, "--prompt", "Hello", stdin=b"/stats\n")
    assert talked.code == opened.code == 0
    assert talked.out == opened.out != ""


def test_a_conversation_is_kept(desk: Desk, run: Cli, tmp_path: Path) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    line = ["run", "--model", "distilgpt2", *SHORT, "--session", tmp_path / "talk.session"]
    assert "saved 1 turn in" in run(*line, "-p", "Hello").err
    assert "continuing 1 turn from" in run(*line, "-p", "Again").err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--use-8bit", "--use-4bit", "-p", "x"], "--use-8bit and --use-4bit: give one of them"),
        (["--use-8bit", "--type", "q4_0", "-p", "x"], "--use-8bit and --type q4_0: give one"),
        (["--type", "q9", "-p", "x"], "unknown type 'q9'"),
        (["-p", ""], "the prompt is empty"),
        ([], "nothing to answer: give a PROMPT"),
        (["-p", "x", "--style", "rude"], "--style rude: expected"),
    ],
)
def test_bad_options_cost_no_download(
    desk: Desk, run: Cli, tmp_path: Path, arguments: list[str], part: str
) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    assert part in run("run", "--model", "distilgpt2", *arguments).user_error
    assert desk.server.requests == []


@pytest.mark.parametrize(
    ("words", "answered", "talks"),
    [
        ([], [], True),
        (["--interactive"], [], True),
        (["Hi"], ["Hi"], False),
        (["Hi", "--interactive"], ["Hi"], True),
        (["-p", "Hi"], ["Hi"], False),
    ],
)
def test_a_terminal_begins_a_conversation(
    run: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], answered: list[str], talks: bool
) -> None:
    from infer_os.terminal import conversation

    done: list[str] = []

    def answer_one(session: object, message: str, *how: object) -> bool:
        done.append(message)
        return False

    run_module = importlib.import_module("infer_os.commands.run")
    monkeypatch.setattr(cli.console, "stdin_is_terminal", lambda: True)
    monkeypatch.setattr(run_module, "conversation_on", lambda *how: nullcontext())
    monkeypatch.setattr(conversation, "answer_one", answer_one)
    monkeypatch.setattr(conversation, "converse", lambda *how: done.append("(talk)"))
    # what is typed comes later: nothing is read from the terminal before
    monkeypatch.setattr(cli.console, "read_stdin", lambda: pytest.fail("stdin was read"))
    monkeypatch.setattr(cli.console, "stdin_is_piped", lambda: False)
    assert run("run", "gpt2", *words).code == 0
    assert done == answered + ["(talk)"] * talks


# ---- names


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("gpt2-lage", "gpt2-lage: no such file or folder, and no name in the catalog"),
        ("gpt2-lage", "did you mean gpt2-large"),
        ("EleutherAI/gpt-neo-20b", "no such model on"),
        ("EleutherAI/gpt-neo-20b", "did you mean EleutherAI/gpt-neox-20b"),
        ("./some/where", "./some/where: no such file or folder"),
        ("some/where/else", "some/where/else: no such file or folder"),
        ("owner/model.gguf", "owner/model.gguf: no such file or folder"),
        ("x" * 300, "cannot be opened: File name too long"),
        ("", "MODEL is empty"),
    ],
)
@pytest.mark.parametrize("command", ["run", "generate"])
def test_an_unknown_name(desk: Desk, run: Cli, command: str, name: str, part: str) -> None:
    model = ["--model", name] if command == "run" else [name]
    assert part in run(command, *model, "-p", "x").user_error
    assert not desk.cache.exists()


def test_a_hub_id_of_no_catalog(desk: Desk, run: Cli, tmp_path: Path) -> None:
    folder = copy_checkpoint(PARALLEL, tmp_path / "repo")
    desk.server.repositories["someone/tiny"] = {"main": folder}
    first = run("generate", "someone/tiny", "-p", "x", "--type", "Q8_0", *SHORT, "--json")
    assert json.loads(first.out)["completion_tokens"] == 4
    assert conversions(desk) == ["hub/someone--tiny/main/tiny-q8_0.gguf"]


def test_an_unsupported_architecture_costs_no_weights(desk: Desk, run: Cli, tmp_path: Path) -> None:
    folder = copy_checkpoint(PARALLEL, tmp_path / "repo")
    set_config(folder, architectures=["LlamaForCausalLM"])
    desk.server.repositories["someone/llama"] = {"main": folder}
    assert (
        "LlamaForCausalLM; supported are"
        in run("run", "--model", "someone/llama", "-p", "x").user_error
    )
    assert set(desk.server.files()) == {"config.json"}
    assert not desk.cache.exists() or desk.cached() == []


def test_a_folder_beside_us_is_not_taken_for_an_owner(
    desk: Desk, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "someone").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert "though someone is a folder" in run("generate", "someone/tiny", "-p", "x").user_error
    assert desk.server.requests == []


def test_a_model_that_cannot_fit_is_not_downloaded(desk: Desk, run: Cli, tmp_path: Path) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "gpt-j-6B")
    result = run("run", "--model", "gpt-j-6B", "--use-8bit", "-p", "x", "--memory", "6GiB")
    first = result.err.splitlines()[0]
    assert first.startswith("error: EleutherAI/gpt-j-6B: as q8_0 it needs 7.58 GB")
    assert "--type q6_k would fit" in first
    assert (result.code, result.out, desk.server.files()) == (2, "", [])


@pytest.mark.parametrize("option", [["--type", "q8_0"], ["--use-8bit"], ["--use-4bit"]])
def test_a_file_keeps_its_type(run: Cli, converted: Any, option: list[str]) -> None:
    assert "keeps its type" in run("run", "--model", converted(), "-p", "x", *option).user_error


# ---- types


def test_what_is_in_the_cache_comes_before_the_default(
    desk: Desk, run: Cli, tmp_path: Path
) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    line = ["generate", "distilgpt2", "-p", "x", *SHORT]
    assert "to q8_0, once" in run(*line, "--type", "q8_0").err
    assert "q8_0 from the cache" in run(*line).err
    assert "to q5_0, once" in run(*line, "--type", "q5_0").err
    # of several, the finest; the default, once it is there
    assert "q8_0 from the cache" in run(*line).err
    assert "to q4_0, once" in run(*line, "--type", "q4_0").err
    assert "q4_0 from the cache" in run(*line).err
    assert len(conversions(desk)) == 3


# ---- no network


def test_no_network_and_nothing_cached(
    desk: Desk, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    unplug(monkeypatch)
    for name in ("distilgpt2", "someone/tiny"):
        error = run("run", "--model", name, "-p", "x").user_error
        assert "no answer from http://127.0.0.1:9" in error
        assert "not in the cache" in error
    assert not desk.cache.exists() or desk.cached() == []


def test_no_network_and_another_type_cached(
    desk: Desk, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    run("run", "--model", "distilgpt2", "-p", "x", "--use-8bit", *SHORT)
    unplug(monkeypatch)
    error = run("run", "--model", "distilgpt2", "-p", "x", "--use-4bit").user_error
    assert "q4_0 of it is not in the cache (but --type q8_0 is)" in error


@pytest.mark.parametrize("name", ["distilgpt2", "someone/tiny"])
def test_forbidden_network(
    desk: Desk, run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from huggingface_hub import constants

    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    desk.server.repositories["someone/tiny"] = {"main": copy_checkpoint(PARALLEL, tmp_path / "t")}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in run("run", "--model", name, "-p", "x").user_error
    if name == "someone/tiny":  # the catalog has what a plan needs
        assert "HF_HUB_OFFLINE is set" in run("plan", name).user_error
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    first = run("run", "--model", name, "-p", "x", *SHORT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    second = run("run", "--model", name, "-p", "x", *SHORT)
    assert (second.code, second.out) == (0, first.out)
    assert "from the cache; the hub was not asked" in second.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "MODEL is missing: give a catalog name"),
        (["gpt2", "Hi", "--model", "gpt2"], "MODEL gpt2 and --model gpt2: give one of them"),
        (["gpt2", "Hi", "-p", "Ho"], "'Hi' is a PROMPT; drop it, or --prompt"),
        (["Hi", "--model", "gpt2", "-p", "Ho"], "'Hi' is a PROMPT, as --model names the MODEL"),
        (["gpt2", " "], "the prompt is empty"),
        (["gpt2"], "nothing to answer: give a PROMPT, pipe in a text, or add --interactive"),
    ],
)
def test_words_that_do_not_go_together(run: Cli, words: list[str], says: str) -> None:
    assert says in run("run", *words).user_error


# ---- folders


def test_a_folder_is_converted_once(desk: Desk, run: Cli, checkpoint: Path) -> None:
    line = ["generate", checkpoint, "-p", "x", *SHORT]
    assert f"{checkpoint}: converting to q4_0, once" in run(*line).err
    second = run(*line)
    assert f"{checkpoint}: q4_0 from the cache" in second.err
    assert "hub" not in second.err
    # another state of the folder is another model, and the old one goes
    before = conversions(desk)
    set_config(checkpoint, layer_norm_eps=1e-4)
    third = run(*line)
    assert "converting to q4_0, once" in third.err
    assert "of an earlier state" in third.err
    assert len(conversions(desk)) == len(before) == 1
    assert conversions(desk) != before


def test_a_folder_that_is_no_checkpoint(desk: Desk, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "not a checkpoint" in run("run", "--model", tmp_path / "empty", "-p", "x").user_error
    assert not desk.cache.exists()


def test_a_conversion_that_fails_leaves_nothing(desk: Desk, run: Cli, checkpoint: Path) -> None:
    shard = next(checkpoint.glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size - 1)
    result = run("run", "--model", checkpoint, "-p", "x")
    assert (result.code, result.out) == (2, "")
    assert "truncated" in result.err.splitlines()[-1]
    assert list(desk.cache.iterdir()) == []


def test_a_cache_that_cannot_be_made(
    run: Cli, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "file" / "cache"))
    assert (
        "cannot be made: Not a directory" in run("run", "--model", checkpoint, "-p", "x").user_error
    )


# ---- what breaks


@pytest.mark.parametrize("damage", ["truncated", "empty", "no GGUF"])
def test_a_damaged_conversion_is_made_anew(
    desk: Desk, run: Cli, tmp_path: Path, damage: str
) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "distilgpt2")
    line = ["generate", "distilgpt2", "-p", "x", *SHORT]
    first = run(*line)
    path = desk.cache / "models" / conversions(desk)[0]
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-1], "empty": b"", "no GGUF": b"x" * 99}[damage])
    second = run(*line)
    assert (second.code, second.out) == (0, first.out)
    assert "it is converted again" in second.err
    assert path.read_bytes() == data


def start(desk: Desk, place: Path, *arguments: object, **variables: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "infer_os.cli", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**client_environment(desk, place), **variables},
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_an_end_in_the_middle_is_continued(
    desk: Desk, tmp_path: Path, number: signal.Signals
) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "gpt-neox-20b")
    third = "model-00003-of-00004.safetensors"
    line = ["run", "--model", "EleutherAI/gpt-neox-20b", "-p", "Hello", *ROOM, *SHORT]

    def end(request: Any) -> None:
        # the third shard itself: the headers are asked for by a range from 0
        if request.file == third and not request.range:
            running.send_signal(number)
            time.sleep(0.5)

    desk.server.on_request = end
    running = start(desk, tmp_path, *line)
    out, err = running.communicate(timeout=60)
    assert running.returncode == (130 if number == signal.SIGINT else -9), err
    assert out == b""
    assert b"Traceback" not in err
    if number == signal.SIGINT:
        assert b"the same command continues" in err
    desk.server.on_request = lambda request: None
    desk.server.requests.clear()
    again = start(desk, tmp_path, *line)
    out, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert b"resume: 2 of 4 shards were written before" in err
    asked = {r.file for r in desk.server.requests if not r.range.startswith("bytes=0-")}
    assert third in asked
    assert not {f"model-0000{i}-of-00004.safetensors" for i in (1, 2)} & asked
    assert desk.cached() == [".lock", "gpt-neox-20b-q4_0.gguf"]


def test_two_at_once_convert_once(desk: Desk, tmp_path: Path) -> None:
    serve(desk.server.repositories, tmp_path / "hub", "gpt-neox-20b")
    desk.server.faults.delay = 0.02
    line = ["run", "--model", "gpt-neox-20b", "-p", "Hello", *ROOM, *SHORT]
    running = [start(desk, tmp_path, *line) for _ in range(3)]
    ended = [process.communicate(timeout=90) for process in running]
    assert [process.returncode for process in running] == [0] * 3, ended
    assert len({out for out, _ in ended}) == 1
    assert sum(b"downloading and converting" in err for _, err in ended) == 1
    # who came while it was being made waited; who came later found it
    for _, err in ended:
        told = (b"downloading and converting", b"another process converts it", b"from the cache")
        assert sum(text in err for text in told) == 1, err
    assert len(desk.shard_downloads()) == 4
    assert desk.cached() == [".lock", "gpt-neox-20b-q4_0.gguf"]
