"""lm-evaluation-harness on tasks of local files: our model, the harness's ``hf``, and its client.

Runs where lm_eval is installed (``pip install 'infer-os[lm-eval]'``), beside ``hf`` where torch and
transformers are, and with ``local-completions``, which asks ``infer-os serve``, where what that
needs is (``pip install 'lm_eval[api]'``).
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from harness_tasks import TASKS, words, write_tasks
from helpers import BUNDLED, Converter

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import lm_eval
from lm_eval.tasks import TaskManager

from infer_os.lm_harness import InferOSLM
from infer_os.runtime.errors import RuntimeFailure, SettingsError

BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
CONTEXT = 128


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # a few contexts and a page are too long
    return write_tasks(tmp_path_factory.mktemp("tasks"), 12, long=True)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def file(converted: Converter) -> Path:
    return converted(BUNDLED_MODEL, "f32")


@pytest.fixture(scope="module")
def ours(file: Path) -> InferOSLM:
    return InferOSLM(str(file), max_length=CONTEXT, threads=2, kv="f32")


def evaluated(model: Any, tasks: Path, names: Sequence[str] = tuple(TASKS)) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model, tasks=[*names], task_manager=TaskManager(include_path=str(tasks)),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return found


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[str]:
    """The address of ``infer-os serve`` with the same file."""
    command = [
        sys.executable, "-m", "infer_os.entry", "serve", str(file), "--context", str(2 * CONTEXT),
        "--threads", "2", "--parallel", "4", "--kv", "f32", "--port", "0",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said is not None
        yield said[0]
        process.terminate()


def client(server: str, max_length: int) -> Any:
    """The harness's own client of servers like OpenAI's."""
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{server}/v1/completions", model="f32", max_length=max_length,
        tokenizer=str(BUNDLED_MODEL), tokenizer_backend="huggingface", batch_size=5,
    )  # fmt: skip


def test_the_client_of_a_server_has_the_same_numbers(
    ours: InferOSLM, tasks: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("transformers", "aiohttp", "tenacity", "tiktoken"):
        pytest.importorskip(module, reason=f"{module} is not installed: lm_eval[api]")
    from lm_eval.models import api_models, openai_completions

    # we add exactly, the client in the order of the tokens
    monkeypatch.setattr(openai_completions, "sum", math.fsum, raising=False)
    monkeypatch.setattr(api_models, "sum", math.fsum, raising=False)
    mine = evaluated(ours, tasks)
    # it takes a token for what is drawn, and one of a text for fed which nobody feeds
    scored = evaluated(client(server, CONTEXT + 2), tasks, ["local_choices", "local_pages"])
    drawn = evaluated(client(server, CONTEXT + 1), tasks, ["local_texts"])
    theirs = {**scored["samples"], **drawn["samples"]}
    for name in TASKS:
        both = list(zip(mine["samples"][name], theirs[name], strict=True))
        assert len(both) == 12
        for number, (one, other) in enumerate(both):
            assert one["doc_hash"] == other["doc_hash"]
            if name == "local_pages" and number == 3:  # sums of windows are rounded again
                assert one["resps"][0][0] == pytest.approx(other["resps"][0][0], rel=1e-14)
            else:  # to the last bit
                assert one["resps"] == other["resps"], (name, number)
    for name in ("local_choices", "local_pages"):
        for metric, value in scored["results"][name].items():
            if isinstance(value, float):
                assert mine["results"][name][metric] == pytest.approx(value, rel=1e-14), metric


def test_the_harness_has_the_numbers_of_hf(ours: InferOSLM, tasks: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    from lm_eval.models.huggingface import HFLM

    hf = HFLM(str(BUNDLED_MODEL), dtype="float32", device="cpu", max_length=CONTEXT, batch_size=4)
    mine, theirs = evaluated(ours, tasks), evaluated(hf, tasks)
    for name in TASKS:
        both = list(zip(mine["samples"][name], theirs["samples"][name], strict=True))
        assert len(both) == 12
        for one, other in both:
            assert one["doc_hash"] == other["doc_hash"]
            if name == "local_texts":
                assert one["resps"] == other["resps"]
            elif name == "local_pages":
                [[got]], [[expected]] = one["resps"], other["resps"]
                assert got == pytest.approx(expected, rel=1e-4)
            else:
                for [(got, greedy)], [(expected, likeliest)] in zip(
                    one["resps"], other["resps"], strict=True
                ):
                    assert got == pytest.approx(expected, abs=5e-3)
                    assert greedy == likeliest
        for metric, value in theirs["results"][name].items():
            if isinstance(value, float):
                assert mine["results"][name][metric] == pytest.approx(value, rel=1e-4), metric


def request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_results_are_in_the_order_of_the_requests(ours: InferOSLM) -> None:
    pairs = [("It is", " a truth"), ("", "It is"), ("It is", " the"), (words(0, 90), " the")]
    got = ours.loglikelihood([request(*pair) for pair in pairs])
    for pair, result in zip(pairs, got, strict=True):
        assert ours.loglikelihood([request(*pair)], disable_tqdm=True) == [result]
    [whole] = ours.loglikelihood_rolling([request("It is")])
    assert whole == got[1][0]


def test_texts_end_where_the_task_says(ours: InferOSLM) -> None:
    [long, short] = ours.generate_until([
        request("It is a truth", {"max_gen_toks": 20, "do_sample": False}),
        request("It is a truth", {"max_gen_toks": 20, "until": [" "], "temperature": 0}),
    ])  # fmt: skip
    assert len(long) > 20 and " " not in short.strip()
    assert long.startswith(short)
    drawn = {"do_sample": True, "temperature": 2.0, "seed": 4, "max_gen_toks": 8}
    assert ours.generate_until([request("It", drawn)]) == ours.generate_until(
        [request("It", drawn)]
    )


def test_what_cannot_work_is_an_error(ours: InferOSLM, file: Path) -> None:
    with pytest.raises(RuntimeFailure, match="record 2: the continuation has no tokens"):
        ours.loglikelihood([request("It", " is"), request("It", "")])
    with pytest.raises(SettingsError, match="raise max_length"):
        ours.generate_until([request("It", {"max_gen_toks": CONTEXT})])
    with pytest.raises(SettingsError, match="no such setting: dtype"):
        InferOSLM(str(file), dtype="float32")


def test_the_command_of_the_harness(file: Path, tasks: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "infer_os.lm_harness", "run", "--model", "infer-os", "--model_args",
        f"pretrained={file},max_length={CONTEXT},threads=1", "--tasks", "local_choices",
        "--include_path", str(tasks), "--limit", "3", "--output_path", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "local_choices" in done.stdout and "acc_norm" in done.stdout
