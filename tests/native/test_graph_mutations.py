"""Whatever the header check accepts, llama.cpp loads or refuses: it never ends the process.

Hundreds of changed files, drawn from a seed: each is checked here, and those that pass are loaded,
and compute a token, in a child process.
"""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from gguf_parts import STRING, GgufParts, Key, Tensor
from helpers import REFERENCES, TESTS, Converter

from infer_os.native.errors import GgufError
from infer_os.native.graph_check import read_model_header
from infer_os.native.unigram_tokenizer import check_unigram

#: One checkpoint for every graph.
GRAPHS = ("bloom", "gpt2", "gptj", "neox-parallel", "bigcode", "mpt", "opt")
N_MUTATIONS = 150
_NUMBERS = (0, 1, 2, 3, 7, 64, 513, 1 << 20, (1 << 31) - 1, (1 << 32) - 1)
_FLOATS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"))
_TEXTS = ("", "gpt2", "llama", "bert", "t5", "no_vocab", "rwkv", "plamo2", "yarn", "longrope", "x",
          "gemma4", "whitespace", "llama-bpe", "tekken", "kimi-k2", "deepseek-llm")  # fmt: skip
_TYPES = [int(t) for t in gguf.GGMLQuantizationType]

#: Keys that llama.cpp reads of any graph, and asserts on.
_FURTHER_KEYS = (
    ("expert_count", Key(4, 4)), ("expert_used_count", Key(4, 2)), ("pooling_type", Key(4, 4)),
    ("nextn_predict_layers", Key(4, 99)), ("rope.scaling.type", Key(STRING, "odd")),
    ("attention.causal", Key(7, False)), ("attention.sliding_window", Key(4, 8)),
    ("attention.key_length", Key(4, 7)), ("attention.value_length", Key(4, 16)),
    ("rope.dimension_count", Key(4, 6)), ("rope.freq_base", Key(6, 0.0)),
    ("rope.scaling.factor", Key(6, 4.0)), ("embedding_length_out", Key(4, 3)),
    ("vocab_size", Key(4, 5)), ("attention.head_count_kv", Key(4, 1)),
    ("rope.scaling.original_context_length", Key(4, 0)),
    ("attention.clamp_kqv", Key(6, 1.5)), ("attention.max_alibi_bias", Key(6, 8.0)),
)  # fmt: skip
_FURTHER_TOKENIZER_KEYS = (
    ("add_bos_token", Key(7, True)), ("add_eos_token", Key(7, True)),
    ("bos_token_id", Key(4, 1 << 30)), ("eos_token_id", Key(4, 1 << 30)),
    ("unknown_token_id", Key(4, 1 << 30)), ("add_sep_token", Key(7, True)),
    ("add_space_prefix", Key(7, True)), ("scores", Key(6, [0.5] * 9, True)),
    ("suppress_tokens", Key(5, [-1, 1 << 20], True)),
)  # fmt: skip

_FURTHER_TENSORS = (
    "blk.0.attn_q.bias", "blk.0.attn_output.scale", "blk.99.ffn_up.weight", "output.weight",
    "output.bias", "blk.0.attn_q_norm.weight", "blk.0.ffn.act.scales", "position_embd.weight",
)  # fmt: skip

Mutation = Callable[[GgufParts, random.Random], None]


def _change_key(parts: GgufParts, draw: random.Random) -> None:
    name = draw.choice(list(parts.keys))
    key = parts.keys[name]
    if key.is_array:
        _change_array(parts, draw)
    elif key.kind == STRING:
        key.value = draw.choice(_TEXTS)
    elif key.kind == 7:
        key.value = not key.value
    elif key.kind in (6, 12):
        key.value = draw.choice(_FLOATS)
    else:
        key.value = draw.choice(_NUMBERS) & ((1 << 8) - 1 if key.kind < 2 else (1 << 31) - 1)


def _change_kind(parts: GgufParts, draw: random.Random) -> None:
    name = draw.choice(list(parts.keys))
    kind = draw.choice((0, 4, 5, 6, 7, STRING, 10))
    parts.keys[name] = Key(kind, "2" if kind == STRING else 2, False)


def _drop_key(parts: GgufParts, draw: random.Random) -> None:
    del parts.keys[draw.choice(list(parts.keys))]


def _add_key(parts: GgufParts, draw: random.Random) -> None:
    graph = parts.keys["general.architecture"].value
    name, key = draw.choice(_FURTHER_KEYS)
    parts.keys[f"{graph}.{name}"] = copy.copy(key)


def _add_tokenizer_key(parts: GgufParts, draw: random.Random) -> None:
    name, key = draw.choice(_FURTHER_TOKENIZER_KEYS)
    parts.keys[f"tokenizer.ggml.{name}"] = copy.copy(key)


def _change_array(parts: GgufParts, draw: random.Random) -> None:
    arrays = [key for key in parts.keys.values() if key.is_array and key.value]
    key = draw.choice(arrays)
    values = key.value = list(key.value)
    at, other = draw.randrange(len(values)), draw.randrange(len(values))
    what = draw.randrange(6)
    if what == 0:
        del values[at:]
    elif what == 1:
        values.append(values[at])
    elif what == 2:
        values[at] = values[other]
    elif key.kind == STRING:
        values[at] = draw.choice(("", "\0", "a\0b", "<0x41>", " ", "[EMPTY_3]", "x" * 300, "ÿ "))
    elif key.kind == 6:
        values[at] = draw.choice(_FLOATS)
    else:
        values[at] = draw.choice((0, 1, 2, 3, 4, 5, 6, 7, -1 if key.kind == 5 else 9))


def _change_type(parts: GgufParts, draw: random.Random) -> None:
    draw.choice(parts.tensors).kind = draw.choice(_TYPES)


def _change_shape(parts: GgufParts, draw: random.Random) -> None:
    shape = draw.choice(parts.tensors).shape
    if draw.random() < 0.3:
        shape.append(1)
    else:
        shape[draw.randrange(len(shape))] = draw.choice((1, 32, 64, 256))


def _move_tensor(parts: GgufParts, draw: random.Random) -> None:
    tensor = draw.choice(parts.tensors)
    what = draw.randrange(3)
    if what == 0:
        parts.tensors.remove(tensor)
    elif what == 1:
        tensor.name = draw.choice(("x", "blk.0.attn_q.weight", "rope_freqs.weight", "output.scale"))
    else:
        name = draw.choice(_FURTHER_TENSORS)
        parts.tensors.append(Tensor(name, list(tensor.shape), tensor.kind, tensor.data))


MUTATIONS: tuple[Mutation, ...] = (
    _change_key, _change_key, _change_kind, _drop_key, _add_key, _add_tokenizer_key, _change_array,
    _change_array, _change_type, _change_type, _change_shape, _move_tensor,
)  # fmt: skip

#: Loads each file and computes with it; prints a file's name before.
_CHILD = """
import sys
from pathlib import Path
from infer_os.native.errors import NativeError
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import RuntimeFailure
from infer_os.runtime.settings import EngineSettings
for line in sys.stdin:
    print(line.strip(), flush=True)
    try:
        with LlamaEngine(Path(line.strip()), EngineSettings(context=32, threads=1)) as engine:
            tokens = engine.vocab.tokenize("A \\u00e4\\n\\n  <|endoftext|> 12")[:16]
            engine.vocab.detokenize(list(range(engine.vocab.n_tokens)))
            engine.feed(tokens or [0])
    except (NativeError, RuntimeFailure):
        pass
print("all", flush=True)
"""


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_accepted_ends_no_process(name: str, converted: Converter, tmp_path: Path) -> None:
    folder = next(path for path in REFERENCES if path.name == name)
    whole = GgufParts.read(converted(folder, "q8_0"))
    draw = random.Random(name)
    accepted, refused = [], 0
    for number in range(N_MUTATIONS):
        parts = copy.deepcopy(whole)
        mutation = draw.choice(MUTATIONS)
        mutation(parts, draw)
        path = parts.write(tmp_path / f"{number}-{mutation.__name__}.gguf")
        try:
            check_unigram(read_model_header(path))
        except GgufError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
            refused += 1
            path.unlink()
        else:
            accepted.append(path)
    assert refused > N_MUTATIONS // 3
    assert len(accepted) > N_MUTATIONS // 10
    done = subprocess.run(
        [sys.executable, "-c", _CHILD], input="\n".join(map(str, accepted)), text=True,
        capture_output=True, cwd=TESTS, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-1500:]
    assert done.stdout.endswith("all\n")
