"""What a user's words for a model mean: the same in every command, with the same advice."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import PARALLEL, copy_checkpoint
from in_process import Cli, runner

from infer_os.convert.errors import SourceError, UnknownModel, UnsupportedError
from infer_os.convert.source import HubSource
from infer_os.store.resolve import find_source, naming_near
from infer_os.store.shelves import shelf_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a working folder with nothing in it; no hub answers."""
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    return runner(monkeypatch, capfdbinary)


def keep(source: HubSource | Path, kind: str = "q4_0") -> None:
    """Put a file into a model's place in the cache."""
    path = shelf_of(source).file(kind)
    path.parent.mkdir(parents=True)
    path.touch()


def test_a_folder_of_that_name_wins() -> None:
    assert find_source("EleutherAI/gpt-j-6B") == HubSource(
        "EleutherAI/gpt-j-6B", "float16", find_source("gpt-j-6b").model
    )
    Path("EleutherAI/gpt-j-6B").mkdir(parents=True)
    Path("gpt2").mkdir()
    assert find_source("EleutherAI/gpt-j-6B") == Path("EleutherAI/gpt-j-6B")
    assert find_source("gpt2") == Path("gpt2")
    assert find_source("gpt2-large").repository == "openai-community/gpt2-large"
    assert find_source("a/b", "v1") == HubSource("a/b", "v1")


@pytest.mark.parametrize("text", ["./nothing", "/nothing/here", "a/b/c", "~/x", "../x", "a/b.gguf"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_what_looks_like_a_path_is_one(text: str, checkpoint: bool) -> None:
    with pytest.raises(SourceError, match=f"{text}: no such .*folder$"):
        find_source(text, checkpoint=checkpoint)


def test_a_slip_beside_a_local_folder() -> None:
    Path("models").mkdir()
    with pytest.raises(SourceError, match="models/nope: no such folder, though models is a folder"):
        find_source("models/nope", checkpoint=True)
    assert find_source("models/nope", "main") == HubSource("models/nope", "main")


def test_only_a_command_with_that_option_advises_it() -> None:
    Path("models").mkdir()
    with pytest.raises(SourceError, match="add --revision main or start from another folder"):
        find_source("models/nope", checkpoint=True)
    with pytest.raises(SourceError, match="on the hub, start from another folder"):
        find_source("models/nope")


def test_beside_a_local_folder_the_cache_counts() -> None:
    keep(HubSource("models/mine"))
    Path("models").mkdir()
    for checkpoint in (True, False):
        assert find_source("models/mine", checkpoint=checkpoint) == HubSource("models/mine")


def test_words_that_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="SOURCE is empty; give a folder"):
        find_source("", checkpoint=True)
    with pytest.raises(SourceError, match="MODEL is empty; give a GGUF file"):
        find_source("")
    with pytest.raises(SourceError, match="no such folder, and no name in the catalog"):
        find_source("gpt-5", checkpoint=True)
    with pytest.raises(UnsupportedError, match=r"--revision main: .* is a local folder"):
        find_source(str(tmp_path), "main")
    for bad in ("../x", "a b", ""):
        with pytest.raises(UnsupportedError, match="expected a branch"):
            find_source("a/b", bad)


def test_a_folder_has_one_place_however_it_is_spelled() -> None:
    folder = copy_checkpoint(PARALLEL, Path("tiny"))
    assert shelf_of(folder) == shelf_of(folder.resolve()) == shelf_of(Path("../here/tiny"))


#: How each command is given a name that it must find.
COMMANDS = {
    "convert": ["convert", "{}", "--dry-run"],
    "plan": ["plan", "{}"],
    "run": ["run", "--model", "{}", "-p", "x"],
    "chat": ["chat", "{}"],
    "generate": ["generate", "{}", "-p", "x"],
    "batch": ["batch", "{}", "-i", "in.jsonl", "-o", "out.jsonl"],
    "bench": ["bench", "{}", "--techniques"],
    "eval": ["eval", "{}", "--text", "/dev/null"],
    "inspect": ["inspect", "{}"],
    "pull": ["pull", "{}"],
    "a draft": ["plan", "gpt2-large", "--draft", "{}"],
    "models show": ["models", "show", "{}"],
    "models rm": ["models", "rm", "{}"],
}


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("convert", "a draft", "models rm")]
)
def test_every_command_refuses_a_file_that_is_no_model(
    run: Cli, command: str, tmp_path: Path
) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear Sir,\n")
    Path("in.jsonl").write_text('{"id": 1, "prompt": "x"}\n')
    error = run(*(word.format(path) for word in COMMANDS[command])).user_error
    assert str(path) in error


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "advice"),
    [("gpt2-lage", "did you mean gpt2-large"), ("own-modell", "did you mean me/own-model")],
)
def test_every_command_gives_the_same_advice(
    run: Cli, command: str, name: str, advice: str
) -> None:
    keep(HubSource("me/own-model"))
    Path("in.jsonl").write_text('{"id": 1, "prompt": "x"}\n')
    line = [word.format(name) for word in COMMANDS[command]]
    error = run(*line).user_error
    assert advice in error
    if not command.startswith("models"):
        assert "and no name in the catalog; hub ids look like EleutherAI/gpt-j-6B" in error


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("qwertyuiop", "; infer-os models lists the names"),
        ("qwertyuiop.gguf", "no such file or folder"),
    ],
)
def test_a_name_like_no_other_is_answered_with_where_the_names_are(
    run: Cli, name: str, advice: str
) -> None:
    assert run("inspect", name).user_error.rstrip().endswith(advice)


def test_what_the_hub_does_not_have_is_named_nearly_so() -> None:
    keep(HubSource("me/own-model"))
    for asked, advice in (
        ("me/own-modell", "; did you mean me/own-model"),
        ("EleutherAI/gpt-neo-20b", "; did you mean EleutherAI/gpt-neox-20b"),
        ("EleutherAI/gpt-neox-20b", ""),
    ):
        with pytest.raises(UnknownModel) as caught, naming_near():
            raise UnknownModel("not there", asked)
        assert str(caught.value).startswith(f"not there{advice}")
        assert ("did you mean" in str(caught.value)) == bool(advice)
