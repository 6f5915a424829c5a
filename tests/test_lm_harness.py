"""lm-evaluation-harness on tasks of local files: our model and the harness's own ``hf``.

Runs where lm_eval is installed (``pip install 'infer-os[lm-eval]'``), and beside ``hf`` where torch
and transformers are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import BUNDLED, REPOSITORY, Converter

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

import lm_eval
from lm_eval.tasks import TaskManager

from infer_os.lm_harness import InferOSLM
from infer_os.runtime.errors import RuntimeFailure, SettingsError

BUNDLED_MODEL = next(folder for folder in BUNDLED if folder.name == "austen-6m")
WORDS = (REPOSITORY / "models" / "bundled" / "held-out.txt").read_text().split()
CONTEXT = 128
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
{more}
"""
CHOICES = """\
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: "{{choices}}"
target_delimiter: " "
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROLLING = """\
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
UNTIL = """\
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n", "."]
  max_gen_toks: 8
  do_sample: false
metric_list:
  - metric: exact_match
"""
TASKS = {
    "local_choices": ("multiple_choice", CHOICES),
    "local_pages": ("loglikelihood_rolling", ROLLING),
    "local_texts": ("generate_until", UNTIL),
}


def words(start: int, n: int) -> str:
    return " ".join(WORDS[start : start + n])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, chance = tmp_path_factory.mktemp("tasks"), random.Random(2)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for number in range(12):
        at = chance.randrange(4000)
        # a few contexts are too long, and lose their beginning
        question = words(at, 200 if number == 5 else chance.randint(4, 40))
        choices = [words(chance.randrange(4000), chance.randint(1, 4)) for _ in range(4)]
        rows["local_choices"].append({"question": question, "choices": choices, "answer": 1})
        rows["local_texts"].append({"question": question, "answer": choices[0]})
        rows["local_pages"].append({"page": words(at, 400 if number == 3 else 30)})
    for name, (kind, more) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=name, data=data, kind=kind, more=more)
        )
    return folder


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


def evaluated(model: Any, tasks: Path) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model, tasks=[*TASKS], task_manager=TaskManager(include_path=str(tasks)),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return found


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
