"""lm-evaluation-harness with three models: ours, its client of our server, and its own ``hf``.

    VENV/bin/python benchmarks/harness.py [--checkpoint FOLDER] [--context 256] [--examples 100]
        [--threads N] [--type f32] [--kv f32] [--work DIR]

Set HF_HUB_OFFLINE=1 for a machine without the hub.

Runs in an environment with infer-os, ``lm_eval[api]``, torch and transformers. The tasks are local
files: multiple choice, perplexity of pages, and texts up to a stop. The checkpoint (the bundled
one, if none is named) is converted for ``infer-os`` and for ``infer-os serve``, which the harness's
``local-completions`` asks; ``hf`` has it in float32.

Prints each metric of each task for the three, the seconds that each took, and how far the others
are from ``infer-os``: answers that are the same to the last bit (the client adds log-probabilities
in order, which is mended here), the largest difference of a log-likelihood, the same choices, the
same greedy flags and the same texts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models import api_models, openai_completions
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.lm_harness import InferOSLM

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "tests"))

from harness_tasks import TASKS, write_tasks  # noqa: E402


@contextmanager
def serving(file: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """The address of ``infer-os serve``."""
    command = [
        sys.executable, "-m", "infer_os.entry", "serve", str(file), "--port", "0", "--parallel",
        "8", "--context", str(arguments.context + 8), "--kv", arguments.kv,
        "--threads", str(arguments.threads),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = re.search(r"http://\S+", process.stdout.readline())
        assert said is not None
        yield said[0]
        process.terminate()


def evaluated(model: Any, tasks: Path) -> tuple[dict[str, Any], float]:
    """What the harness finds, and the seconds that it took."""
    started = time.perf_counter()
    found = lm_eval.simple_evaluate(
        model=model, tasks=[*TASKS], task_manager=TaskManager(include_path=str(tasks)),
        log_samples=True, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return found, time.perf_counter() - started


def compared(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How far the samples of a model are from ours."""
    row: dict[str, Any] = {}
    for name in TASKS:
        pairs = list(zip(mine["samples"][name], theirs["samples"][name], strict=True))
        same = sum(one["resps"] == other["resps"] for one, other in pairs)
        row[name] = {"examples": len(pairs), "same_to_the_bit": same}
        if name == "local_texts":
            continue
        values = [
            (_numbers(a), _numbers(b))
            for one, other in pairs
            for [a], [b] in zip(one["resps"], other["resps"], strict=True)
        ]
        row[name]["largest_difference"] = max(abs(a[0] - b[0]) for a, b in values)
        if name == "local_choices":
            row[name]["same_greedy"] = sum(a[1:] == b[1:] for a, b in values)
            row[name]["same_choice"] = sum(_choice(one) == _choice(other) for one, other in pairs)
    return row


def _numbers(response: Any) -> tuple[Any, ...]:
    return tuple(response) if isinstance(response, (tuple, list)) else (response,)


def _choice(sample: dict[str, Any]) -> int:
    sums = [_numbers(response)[0] for [response] in sample["resps"]]
    return sums.index(max(sums))


def main() -> None:
    """Run the three, and print what they say."""
    arguments = parsed_arguments()
    # the others add exactly
    for module in (api_models, openai_completions):
        module.sum = math.fsum
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        os.environ["HF_DATASETS_CACHE"] = str(work / "datasets")
        (work / "tasks").mkdir()
        tasks = write_tasks(work / "tasks", arguments.examples)
        file = work / "model.gguf"
        convert(ConvertSettings(arguments.checkpoint, file, arguments.type))
        ours = InferOSLM(
            str(file), max_length=arguments.context, threads=arguments.threads, kv=arguments.kv
        )
        found = {"infer-os": evaluated(ours, tasks)}
        del ours
        with serving(file, arguments) as address:
            client = openai_completions.LocalCompletionsAPI(
                base_url=f"{address}/v1/completions", model="model", batch_size=8,
                max_length=arguments.context + 2, tokenizer=str(arguments.checkpoint),
                tokenizer_backend="huggingface",
            )  # fmt: skip
            found["local-completions"] = evaluated(client, tasks)
        hf = HFLM(
            str(arguments.checkpoint), dtype="float32", device="cpu",
            max_length=arguments.context, batch_size=8,
        )  # fmt: skip
        found["hf"] = evaluated(hf, tasks)
    show(found)


def show(found: dict[str, tuple[dict[str, Any], float]]) -> None:
    """A table of metrics, then what is compared, as JSON."""
    print(f"{'task':16}{'metric':20}" + "".join(f"{name:>20}" for name in found))
    mine = found["infer-os"][0]
    for task in TASKS:
        for metric, value in mine["results"][task].items():
            if isinstance(value, float):
                values = [one["results"][task][metric] for one, _ in found.values()]
                print(f"{task:16}{metric:20}" + "".join(f"{value:20.12g}" for value in values))
    print(f"{'seconds':36}" + "".join(f"{seconds:20.2f}" for _, seconds in found.values()))
    for name in ("local-completions", "hf"):
        print(json.dumps({"model": name, **compared(mine, found[name][0])}))


def parsed_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    bundled = REPOSITORY / "models" / "bundled" / "austen-6m"
    parser.add_argument("--checkpoint", type=Path, default=bundled)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--type", default="f32")
    parser.add_argument("--kv", default="f32")
    parser.add_argument("--work", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
