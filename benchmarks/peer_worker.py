"""One program of a comparison, run by its own Python: converts a checkpoint, or takes rounds.

    python benchmarks/peer_worker.py convert KIND CHECKPOINT OUT
    python benchmarks/peer_worker.py run KIND MODEL THREADS N_PROMPT N_DECODE PARALLEL

KIND is a key of ``KINDS``, or ``ik_llama-`` and a type, whose MODEL is a GGUF file. ``convert``
writes the folder OUT from a checkpoint and prints one line of JSON: seconds, the peak of the
process's memory, versions, bytes of weights. ``run`` takes the checkpoint itself (transformers) or
what was converted, takes one round to warm up, and prints a line with the versions; then each line
of stdin asks for a round, answered by a line of JSON with the seconds of the prompts, until the
first token of every sequence is drawn, and of N_DECODE tokens after it (:func:`first_and_rest`).
PARALLEL sequences are computed at once, each with a prompt of its own. Needs nothing of infer-os.
Exits with 3 and the reason if a program is not installed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

Round = Callable[[], tuple[float, float]]  # seconds of the prompts, and of the decoded tokens


class Sizes(NamedTuple):
    """What is computed: threads, tokens of a prompt and decoded after it, sequences at once."""

    threads: int
    n_prompt: int
    n: int
    parallel: int

    def prompts(self) -> list[list[int]]:
        """Tokens, different for every sequence."""
        return [list(range(1 + i, self.n_prompt + 1 + i)) for i in range(self.parallel)]


class Kind(NamedTuple):
    """How to convert (None: the program reads the checkpoint itself) and to run, and of what."""

    convert: Callable[[str, str, str], None] | None
    load: Callable[[str, str, Sizes], Round]
    packages: tuple[str, ...]


def load_transformers(kind: str, folder: str, sizes: Sizes) -> Round:
    """Greedy decoding with transformers' own cache, without its generate() around it."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(sizes.threads)
    dtype = getattr(torch, kind.split("-")[1])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    prompts = torch.tensor(sizes.prompts())

    @torch.inference_mode()
    def run() -> tuple[float, float]:
        started = time.perf_counter()
        out = model(prompts, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        middle = time.perf_counter()
        for _ in range(sizes.n):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return middle - started, time.perf_counter() - middle

    return run


def convert_ctranslate2(kind: str, folder: str, out: str) -> None:
    """CTranslate2's own converter; the tokenizer gets a token for every row of the embedding."""
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoConfig

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, tokenizer_class: Any, path: str, **options: Any) -> Any:
            tokenizer = tokenizer_class.from_pretrained(path, **options)
            missing = AutoConfig.from_pretrained(path).vocab_size - len(tokenizer)
            tokenizer.add_tokens([f"<pad{i}>" for i in range(missing)])
            tokenizer.unk_token = tokenizer.bos_token = tokenizer.eos_token
            return tokenizer

    Converter(folder, low_cpu_mem_usage=True).convert(out, quantization=kind.split("-")[1])


def load_ctranslate2(kind: str, folder: str, sizes: Sizes) -> Round:
    """CTranslate2's generator, greedy; its callback says when each token is drawn."""
    import ctranslate2

    generator = ctranslate2.Generator(
        folder, compute_type=kind.split("-")[1], intra_threads=sizes.threads
    )
    tokens = json.loads((Path(folder) / "vocabulary.json").read_text())
    prompts = [[tokens[i] for i in prompt] for prompt in sizes.prompts()]
    n = sizes.n

    def run() -> tuple[float, float]:
        drawn: list[list[float]] = [[] for _ in prompts]
        started = time.perf_counter()
        generator.generate_batch(
            prompts, max_length=n + 1, min_length=n + 1, sampling_topk=1,
            include_prompt_in_result=False,  # that is: the prompt in one pass, not token by token
            callback=lambda step: drawn[step.batch_id].append(time.perf_counter()),
        )  # fmt: skip
        return first_and_rest(started, drawn, n)

    return run


def convert_openvino(kind: str, folder: str, out: str) -> None:
    """optimum-intel's export with NNCF's compressed weights, by its own defaults for the bits.

    With 4 bits, NNCF keeps the embedding and the head in 8.
    """
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    settings = OVWeightQuantizationConfig(bits=int(kind[-1]), sym=False)
    model = OVModelForCausalLM.from_pretrained(
        folder, export=True, compile=False, quantization_config=settings
    )
    model.save_pretrained(out)


def load_openvino(kind: str, folder: str, sizes: Sizes) -> Round:
    """OpenVINO GenAI, greedy, fed with token ids, which says when each token is drawn.

    A single sequence goes through its pipeline, which a streamer watches, several through its
    continuous batching, step by step.
    """
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    # else the prompt of the last round is found again instead of computed
    scheduler.enable_prefix_caching = False
    most = max(sizes.n_prompt, 2048)
    scheduler.max_num_batched_tokens = max(min(sizes.n_prompt * sizes.parallel, most), 256)
    scheduler.max_num_seqs = sizes.parallel
    settings = openvino_genai.GenerationConfig(
        max_new_tokens=sizes.n + 1, min_new_tokens=sizes.n + 1, ignore_eos=True, do_sample=False,
        apply_chat_template=False,
    )  # fmt: skip
    load = _openvino_batch if sizes.parallel > 1 else _openvino_alone
    return load(folder, sizes, scheduler, settings)


def _openvino_alone(folder: str, sizes: Sizes, scheduler: Any, settings: Any) -> Round:
    import openvino_genai

    class Clock(openvino_genai.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[float] = []

        def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
            count = len(token) if isinstance(token, list) else 1
            self.drawn += [time.perf_counter()] * count
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    pipeline = openvino_genai.LLMPipeline(
        folder, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=sizes.threads
    )
    (prompt,) = _tensors(sizes)

    def run() -> tuple[float, float]:
        clock = Clock()
        started = time.perf_counter()
        pipeline.generate(prompt, settings, clock)
        return first_and_rest(started, [clock.drawn], sizes.n)

    return run


def _openvino_batch(folder: str, sizes: Sizes, scheduler: Any, settings: Any) -> Round:
    import openvino_genai

    pipeline = openvino_genai.ContinuousBatchingPipeline(
        folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": sizes.threads}
    )
    prompts = _tensors(sizes)

    def run() -> tuple[float, float]:
        drawn: list[list[float]] = [[] for _ in prompts]
        started = time.perf_counter()
        handles = [pipeline.add_request(i, prompt, settings) for i, prompt in enumerate(prompts)]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            now = time.perf_counter()
            for times, handle in zip(drawn, handles, strict=True):
                while handle.can_read():
                    times += [now] * sum(len(out.generated_ids) for out in handle.read().values())
        return first_and_rest(started, drawn, sizes.n)

    return run


def _tensors(sizes: Sizes) -> list[Any]:
    import numpy as np
    import openvino

    return [openvino.Tensor(np.array([prompt], np.int64)) for prompt in sizes.prompts()]


def load_ik_llama(kind: str, file: str, sizes: Sizes) -> Round:
    """ik_llama.cpp with a file of ours, its tensors repacked while loading; greedy."""
    from ik_worker import Model

    if sizes.parallel > 1:
        raise SystemExit("several sequences end it: GGML_ASSERT(S > 0) of its flash attention")
    n_prompt = sizes.n_prompt
    model = Model(file, n_prompt + sizes.n + 8, sizes.threads, repack=True)
    (prompt,) = sizes.prompts()

    def run() -> tuple[float, float]:
        model.clear()
        started = time.perf_counter()
        model.decode(prompt, 0, n_prompt - 1)
        token = int(model.logits(n_prompt - 1).argmax())
        middle = time.perf_counter()
        for i in range(sizes.n):
            model.decode([token], n_prompt + i, 0)
            token = int(model.logits(0).argmax())
        return middle - started, time.perf_counter() - middle

    return run


def first_and_rest(started: float, drawn: list[list[float]], n: int) -> tuple[float, float]:
    """Seconds until every sequence has its first token, and of ``n`` more of each.

    Programs begin to decode some sequences while they compute the prompts of others. So decoding
    counts from the moment when all have begun to about the one when the first of them ends.

    Args:
        started: when the prompts were handed in.
        drawn: when each token came, of every sequence; n + 1 of each.
        n: tokens after the first.

    Raises:
        RuntimeError: other numbers came, or one ended before the last began.
    """
    counts = {len(times) for times in drawn}
    if counts != {n + 1}:
        raise RuntimeError(f"{sorted(counts)} tokens came, {n + 1} were requested")
    late = max(drawn, key=lambda times: times[0])
    begin, first_end = late[0], min(times[-1] for times in drawn)
    # both are moments of the same sequence: those of a step may come one after another
    end = max(time for time in late if time <= max(begin, first_end))
    meanwhile = sum(begin < time <= end for times in drawn for time in times)
    if not meanwhile:
        raise RuntimeError(f"a sequence of {n} tokens ended before the last began")
    return begin - started, (end - begin) * n * len(drawn) / meanwhile


_TRANSFORMERS = Kind(None, load_transformers, ("transformers", "torch"))
_OPENVINO = Kind(
    convert_openvino, load_openvino,
    ("openvino-genai", "openvino", "optimum-intel", "nncf", "transformers"),
)  # fmt: skip
KINDS = {
    "transformers-float32": _TRANSFORMERS,
    "transformers-bfloat16": _TRANSFORMERS,
    "ctranslate2-int8": Kind(
        convert_ctranslate2, load_ctranslate2, ("ctranslate2", "transformers")
    ),
    "openvino-int8": _OPENVINO,
    "openvino-int4": _OPENVINO,
}
# its kinds are the types of the files: ik_llama-q8_0 and so on
_IK_LLAMA = Kind(None, load_ik_llama, ("ik-llama-cpp-python",))


def kind_named(name: str) -> Kind:
    """How a program runs."""
    return _IK_LLAMA if name.startswith("ik_llama-") else KINDS[name]


def versions(packages: tuple[str, ...]) -> str:
    """Those that are installed, as one line."""
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def convert(kind: str, folder: str, out: str) -> dict[str, object]:
    """Convert; what it took."""
    how = kind_named(kind).convert
    if how is None:
        raise SystemExit(f"{kind} reads the checkpoint as it is")
    started = time.perf_counter()
    how(kind, folder, out)
    return {
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "versions": versions(kind_named(kind).packages),
        "weights_bytes": max(p.stat().st_size for p in Path(out).glob("*.bin")),
    }


def main() -> None:
    """Convert, or load and take a round per line."""
    verb, kind, folder, *rest = sys.argv[1:]
    answers = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is not an answer

    def answer(value: dict[str, object]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        if verb == "convert":
            return answer(convert(kind, folder, rest[0]))
        run = kind_named(kind).load(kind, folder, Sizes(*map(int, rest)))
    except ImportError as error:
        print(f"not installed: {error}", file=sys.stderr)
        sys.exit(3)
    run()
    answer({"versions": versions(kind_named(kind).packages)})
    for _line in sys.stdin:
        prefill_s, decode_s = run()
        answer({"prefill_s": prefill_s, "decode_s": decode_s})


if __name__ == "__main__":
    main()
