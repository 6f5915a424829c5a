"""transformers as one side of benchmarks/scoring.py, run by a Python that has it.

    python benchmarks/scoring_worker.py FOLDER DTYPE THREADS RECORDS BATCH

RECORDS is a file of JSON lines {"tokens": [...], "first": N}: the tokens from N on are scored,
given those before them. Does what lm-evaluation-harness's ``hf`` does: the longest first, BATCH at
once, padded on the right, each with its whole context; of continuations of one token behind the
same context, one row. Prints a line with the versions; then each line of stdin asks for a round,
answered by a line of JSON with its seconds and the sums of log-probabilities in the order of the
file.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Load, then take rounds until stdin ends."""
    import torch
    from transformers import AutoModelForCausalLM

    folder, dtype, threads, records, batch = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    rows = [json.loads(line) for line in Path(records).read_text().splitlines()]
    rows = [(tuple(row["tokens"]), row["first"]) for row in rows]
    # rows of logits are the same where all but the last token are, and only that one is scored
    groups: dict[object, list[int]] = {}
    for number, (tokens, first) in enumerate(rows):
        alone = first < len(tokens) - 1
        groups.setdefault((number if alone else -1, tokens[:-1]), []).append(number)
    order = sorted(groups.values(), key=lambda group: -len(rows[group[0]][0]))

    @torch.inference_mode()
    def run() -> list[float]:
        sums = [0.0] * len(rows)
        for at in range(0, len(order), int(batch)):
            part = order[at : at + int(batch)]
            longest = max(len(rows[group[0]][0]) for group in part) - 1
            inputs = torch.zeros((len(part), longest), dtype=torch.long)
            for i, group in enumerate(part):
                tokens = rows[group[0]][0][:-1]
                inputs[i, : len(tokens)] = torch.tensor(tokens)
            logits = model(inputs).logits
            for i, group in enumerate(part):
                for number in group:
                    tokens, first = rows[number]
                    wanted = logits[i, first - 1 : len(tokens) - 1].float().log_softmax(-1)
                    targets = torch.tensor(tokens[first:])
                    sums[number] = float(wanted.gather(1, targets[:, None]).sum())
        return sums

    print(json.dumps({name: version(name) for name in ("torch", "transformers")}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        sums = run()
        print(json.dumps({"seconds": time.perf_counter() - started, "sums": sums}), flush=True)


if __name__ == "__main__":
    main()
