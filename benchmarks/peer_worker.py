"""One program of a comparison, run by its own Python: a line on stdin, a round, a line of JSON.

    python benchmarks/peer_worker.py KIND FOLDER THREADS N_PROMPT N_DECODE

KIND is transformers-float32, transformers-bfloat16, ctranslate2-int8 or openvino-int8. Needs
nothing of infer-os. Exits with 3 and the reason where its program is not installed.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

Round = Callable[[], tuple[float, float]]


def transformers_round(kind: str, folder: str, threads: int, n_prompt: int, n: int) -> Round:
    """Greedy decoding with transformers' own cache, without its generate() around it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    dtype = getattr(torch, kind.split("-")[1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    prompt = torch.arange(1, n_prompt + 1).reshape(1, -1)

    @torch.inference_mode()
    def run() -> tuple[float, float]:
        started = time.perf_counter()
        out = model(prompt, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        middle = time.perf_counter()
        for _ in range(n):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return middle - started, time.perf_counter() - middle

    return run


def ctranslate2_round(kind: str, folder: str, threads: int, n_prompt: int, n: int) -> Round:
    """CTranslate2's generator on int8 weights; its prefill is a round of one token."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoConfig, AutoTokenizer

    place = Path(tempfile.mkdtemp())
    source, made = place / "source", place / "model"
    shutil.copytree(folder, source)
    # it wants a token for every row of the embedding
    tokenizer = AutoTokenizer.from_pretrained(folder)
    missing = AutoConfig.from_pretrained(folder).vocab_size - len(tokenizer)
    tokenizer.add_tokens([f"<pad{i}>" for i in range(missing)])
    tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
    tokenizer.save_pretrained(source)
    TransformersConverter(str(source)).convert(str(made), quantization=kind.split("-")[1])
    generator = ctranslate2.Generator(str(made), device="cpu", intra_threads=threads)
    prompt = tokenizer.convert_ids_to_tokens(list(range(1, n_prompt + 1)))

    def generate(length: int) -> float:
        started = time.perf_counter()
        generator.generate_batch(
            [prompt], max_length=length, min_length=length, sampling_topk=1,
            include_prompt_in_result=False,
        )  # fmt: skip
        return time.perf_counter() - started

    def run() -> tuple[float, float]:
        first = generate(1)
        return first, generate(n + 1) - first

    return run


def openvino_round(kind: str, folder: str, threads: int, n_prompt: int, n: int) -> Round:
    """OpenVINO's model through optimum, int8 weights, greedy; its prefill is a round of one."""
    import torch
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, quantization_config=OVWeightQuantizationConfig(bits=8),
        ov_config={"INFERENCE_NUM_THREADS": threads},
    )  # fmt: skip
    prompt = torch.arange(1, n_prompt + 1).reshape(1, -1)

    def generate(length: int) -> float:
        started = time.perf_counter()
        model.generate(prompt, max_new_tokens=length, min_new_tokens=length, do_sample=False)
        return time.perf_counter() - started

    def run() -> tuple[float, float]:
        first = generate(1)
        return first, generate(n + 1) - first

    return run


KINDS = {
    "transformers": transformers_round, "ctranslate2": ctranslate2_round,
    "openvino": openvino_round,
}  # fmt: skip


def main() -> None:
    """Load, then a round per line."""
    kind, folder, threads, n_prompt, n = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no answer
    try:
        run = KINDS[kind.split("-")[0]](kind, folder, int(threads), int(n_prompt), int(n))
    except ImportError as error:
        print(f"not installed: {error}", file=sys.stderr)
        sys.exit(3)
    print("ready", file=answers, flush=True)
    for _line in sys.stdin:
        prefill_s, decode_s = run()
        print(json.dumps({"prefill_s": prefill_s, "decode_s": decode_s}), file=answers, flush=True)


if __name__ == "__main__":
    main()
