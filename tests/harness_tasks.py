"""Tasks of lm-evaluation-harness that are local files: choices, pages and texts of a novel.

In goes a folder; out come task files and their data there, for ``include_path``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).parents[1]
WORDS = (_REPOSITORY / "models" / "bundled" / "held-out.txt").read_text().split()
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
    """Words of the held-out text of the bundled model."""
    return " ".join(WORDS[start : start + n])


def write_tasks(folder: Path, n: int, *, long: bool = False) -> Path:
    """Write ``n`` examples of each task; returns the folder.

    With ``long`` the sixth question and the fourth page have more tokens than a short context.
    """
    chance = random.Random(2)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TASKS}
    for number in range(n):
        at = chance.randrange(4000)
        question = words(at, 200 if long and number == 5 else chance.randint(4, 40))
        choices = [words(chance.randrange(4000), chance.randint(1, 4)) for _ in range(4)]
        rows["local_choices"].append({"question": question, "choices": choices, "answer": 1})
        rows["local_texts"].append({"question": question, "answer": choices[0]})
        page = words(at, 400 if long and number == 3 else 30)
        rows["local_pages"].append({"page": page})
    for name, (kind, more) in TASKS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=name, data=data, kind=kind, more=more)
        )
    return folder
