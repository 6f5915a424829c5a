"""Texts under a JSON schema: whether all are valid, and what following it costs per token.

    python benchmarks/schema.py MODEL [--texts 100] [--rounds 5] [--tokens 200]

Writes a text for each of the seeds 1 to ``--texts`` under the schema of the README and judges each
with jsonschema. Then the same model writes ``--tokens`` tokens with a constraint that allows any
text (``(?s:.*)``) and without one, alternately; prints the median of seconds per token of both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import jsonschema

from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import complete
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

#: That of the README.
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 16, "maximum": 90},
    },
    "required": ["name", "age"],
}
_PROMPT = "Mr. Darcy, in JSON: "


def count_valid(engine: LlamaEngine, n_texts: int) -> tuple[int, int, float]:
    """Texts that ended, those of them that are valid, and seconds per token."""
    judge = jsonschema.Draft202012Validator(SCHEMA)
    ended = valid = n_tokens = 0
    prompt = engine.vocab.tokenize(_PROMPT)
    started = time.perf_counter()
    for seed in range(1, n_texts + 1):
        sampling = SamplingSettings(seed=seed, json_schema=json.dumps(SCHEMA))
        done = complete(engine, prompt, sampling, StopSettings(128))
        n_tokens += len(done.tokens)
        if done.finish_reason.value == "end":
            ended += 1
            valid += judge.is_valid(json.loads(done.text))
    return ended, valid, (time.perf_counter() - started) / max(n_tokens, 1)


def seconds_per_token(engine: LlamaEngine, regex: str, n_tokens: int) -> float:
    """Of one text, its prompt left out."""
    sampling = SamplingSettings(seed=1, regex=regex)
    prompt = engine.vocab.tokenize(_PROMPT)
    done = complete(engine, prompt, sampling, StopSettings(n_tokens))
    return 1 / done.timings.decode_tokens_per_s


def main() -> int:
    """Print both figures; 1 if a text is not valid."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    with LlamaEngine(options.model, EngineSettings(context=512, threads=1)) as engine:
        ended, valid, seconds = count_valid(engine, options.texts)
        print(f"{options.texts} texts: {ended} ended, {valid} valid; {seconds * 1e6:.0f} us/token")
        rounds: dict[str, list[float]] = {"": [], r"(?s:.*)": []}
        for _ in range(options.rounds):
            for regex, found in rounds.items():
                found.append(seconds_per_token(engine, regex, options.tokens))
        for regex, found in rounds.items():
            middle = statistics.median(found) * 1e6
            print(f"{regex or 'no constraint'}: {middle:.0f} us/token, median of {len(found)}")
    return 0 if ended == valid else 1


if __name__ == "__main__":
    sys.exit(main())
