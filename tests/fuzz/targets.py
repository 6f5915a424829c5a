"""What is fuzzed in Python: every reader of bytes that come from a stranger.

A target takes bytes as a file's content (or as edits of a JSON document) and reads them as a
command would. It may raise one of its own errors; anything else is a fault, and so is a read that
takes seconds. Seeds are real files, made from the references and the bundled models.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from adapter_files import random_adapter
from ggml_writer import gptj
from helpers import TESTS, RawGguf, tensor_entry, u32

from infer_os.convert.adapter_file import write_adapter
from infer_os.convert.checkpoint import open_checkpoint, read_config, read_index
from infer_os.convert.errors import ConvertError
from infer_os.convert.ggml_blocks import OldBlocks
from infer_os.convert.ggml_checkpoint import open_local
from infer_os.convert.ggml_file import GgmlFile
from infer_os.convert.imatrix import read_imatrix
from infer_os.convert.pipeline import convert
from infer_os.convert.safetensors_file import SafetensorsFile
from infer_os.convert.sentencepiece_file import read_sentencepiece
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import AdapterSource
from infer_os.convert.statistics import Origin, read_layer, read_statistics, write_layer
from infer_os.convert.tokenizer import read_vocabulary
from infer_os.convert.torch_file import TorchFile
from infer_os.models.architectures import describe
from infer_os.models.network import ConfigError, Role
from infer_os.native.errors import NativeError
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.grammar import compiled
from infer_os.native.graph_check import read_model_header
from infer_os.native.kv_state import KvFormat, KvGeometry, read_layout, reencode_state
from infer_os.native.lora_adapter import check_adapter
from infer_os.native.moments import Moments
from infer_os.native.text_rules import read_text_rules
from infer_os.native.unigram_tokenizer import CharsMap, check_unigram
from infer_os.runtime.batch.journal import Journal
from infer_os.runtime.batch.reading import read_pipe, read_values
from infer_os.runtime.batch.records import BadRecord, RecordParser
from infer_os.runtime.errors import RuntimeFailure
from infer_os.runtime.settings import SamplingSettings, StopSettings

#: Of a large file, what a seed has.
_MOST = 24_000


@dataclass(frozen=True, slots=True)
class Target:
    """A reader: ``read`` gets the bytes and an empty folder to put them into."""

    read: Callable[[bytes, Path], object]
    seeds: Callable[[], Sequence[bytes]]
    errors: tuple[type[Exception], ...]

    def run(self, data: bytes, folder: Path) -> None:
        """Read; only the errors that users are meant to see are let pass."""
        with suppress(*self.errors):
            self.read(data, folder)


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ---- GGUF


def _read_gguf(data: bytes, folder: Path) -> None:
    header = read_model_header(_file(folder, "model.gguf", data))
    check_unigram(header)
    read_text_rules(header)
    for value in header.metadata.values():
        if not isinstance(value, (str, int, float, bool)):
            list(value)


def _gguf_seeds() -> list[bytes]:
    names = ("neox-parallel", "gpt2", "bloom", "gptj", "bigcode", "opt")
    small = RawGguf(tensors=[tensor_entry("a", [32, 2], 8)], data=bytes(68)).bytes()
    return [small, *(_converted(name, "q8_0") for name in names)]


def _converted(name: str, kind: str) -> bytes:
    """A stored checkpoint as a GGUF file."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{name}.gguf"
        convert(ConvertSettings(TESTS / "reference" / name, target, kind))
        return target.read_bytes()


def _imatrix_seeds() -> list[bytes]:
    return [(TESTS / "reference" / "imatrix" / "llama.gguf").read_bytes()[:_MOST]]


# ---- LoRA adapters for a loaded model


@cache
def _adapted() -> GgufHeader:
    """The header of the model that the adapters are for."""
    with tempfile.TemporaryDirectory() as folder:
        return read_model_header(_file(Path(folder), "model.gguf", _converted("gptj", "f32")))


def _read_adapter(data: bytes, folder: Path) -> None:
    (folder / "loaded.gguf").unlink(missing_ok=True)
    source = AdapterSource(_file(folder, "adapter.gguf", data), 1.0, "adapter.gguf", "--adapter")
    write_adapter(source, _adapted(), folder / "loaded.gguf")
    check_adapter(read_gguf_header(folder / "loaded.gguf"), _adapted())


def _adapter_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        base, target = TESTS / "reference/gptj", Path(folder) / "adapter.gguf"
        source = random_adapter(base, Path(folder) / "peft", rank=1, roles=(Role.ATTN_OUTPUT,))
        write_adapter(AdapterSource(source, 1.0, "peft", "--adapter"), _adapted(), target)
        return [target.read_bytes()]


def _read_statistics(data: bytes, folder: Path) -> None:
    path = _file(folder, "blk.0.moments.gguf", data)
    read_statistics(folder)
    layer = read_layer(path)
    for name in layer.leaders:
        layer.moments(name)


def _statistics_seeds() -> list[bytes]:
    import tempfile

    square = np.eye(32, dtype=np.float32)
    moments = {name: Moments(name, (square * size,), 400) for name, size in (("a", 1), ("b", 3))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blk.0.moments.gguf"
        write_layer(path, Origin("f", "text", 4, 100), {"a": "a", "b": "b", "c": "a"}, moments)
        return [path.read_bytes()]


# ---- checkpoints


def _read_safetensors(data: bytes, folder: Path) -> None:
    _read_tensors(SafetensorsFile(_file(folder, "model.safetensors", data)))


def _read_torch(data: bytes, folder: Path) -> None:
    _read_tensors(TorchFile(_file(folder, "pytorch_model.bin", data)))


def _read_ggml(data: bytes, folder: Path) -> None:
    path = _file(folder, "ggml-model.bin", data)
    _read_tensors(GgmlFile(path))
    with suppress(ConfigError):
        describe(open_local(path, TESTS / "reference" / "gptj").config)


def _ggml_seeds() -> list[bytes]:
    shortest = [tensor for tensor in gptj("f16").tensors if len(tensor[3]) < 9000]
    kinds = [("f16", b"lmgg", None), ("q4_0", b"tjgg", 3), ("q5_1", b"fmgg", 1)]
    return [
        replace(gptj(kind), magic=magic, container=container, tensors=shortest).bytes()
        for kind, magic, container in kinds
    ]


def _read_tensors(file: SafetensorsFile | TorchFile | GgmlFile) -> None:
    try:
        for name in file.tensors:
            values = file.array(name)
            if isinstance(values, OldBlocks):
                values = values.rows(slice(None))
            values.astype(np.float32)
    finally:
        file.close()


def _safetensors_seeds() -> list[bytes]:
    header = {"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
              "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
              "__metadata__": {"format": "pt"}}  # fmt: skip
    text = json.dumps(header).encode()
    stored = (TESTS / "reference" / "torch_files").glob("*.safetensors")
    return [struct.pack("<Q", len(text)) + text + bytes(16), *(p.read_bytes() for p in stored)]


def _torch_seeds() -> list[bytes]:
    return [p.read_bytes() for p in sorted((TESTS / "reference" / "torch_files").glob("*.bin"))]


# ---- JSON documents, edited


_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -0.0, 1e308, float("nan"), float("inf"),
    "", "x", "\0", "\ud800", "\u202e", "a" * 5000, [], [[]], [None], {}, {"type": "Sequence"},
    {"": {}},
)  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document with each of its keys, (container, key)."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _copy(value: Any) -> Any:
    """A document holds nothing twice, and never itself."""
    return json.loads(json.dumps(value))


def edited(document: Any, data: bytes) -> Any:
    """A copy of a document with the edits that bytes spell, five each: what, where, by which."""
    document = _copy(document)
    for at in range(0, min(len(data) - 4, 40), 5):
        action, which = data[at] % 4, data[at + 4]
        places = list(_places(document))
        if not places:
            break
        container, key = places[int.from_bytes(data[at + 1 : at + 4], "big") % len(places)]
        odd = _ODD[which % len(_ODD)]
        if action == 0:
            container[key] = _copy(odd)
        elif action == 1:
            del container[key]
        elif action == 2:  # a value of another place
            other, from_key = places[which * 257 % len(places)]
            container[key] = _copy(other[from_key])
        elif isinstance(container, list):
            container.insert(key, _copy(container[key]))
        else:
            container[str(odd) if which % 2 else f"{key}x"] = _copy(container[key])
    return document


def _edits() -> list[bytes]:
    random = np.random.default_rng(1)
    return [random.integers(0, 256, n, np.uint8).tobytes() for n in (5, 10, 25)]


def _json_bytes(document: Any) -> bytes:
    # a key that is no text becomes one
    return json.dumps(document, ensure_ascii=True, skipkeys=True).encode()


def _documents(name: str) -> list[Any]:
    folders = [
        *sorted((TESTS / "reference").glob("*/")),
        *(TESTS / "reference/tokenizers").glob("*/"),
    ]
    return [
        json.loads((folder / name).read_text()) for folder in folders if (folder / name).is_file()
    ]


def _pick(documents: Sequence[Any], data: bytes) -> Any:
    return documents[data[0] % len(documents)] if data else documents[0]


_CONFIGS = _documents("config.json")
_TOKENIZERS = [d for d in _documents("tokenizer.json") if len(json.dumps(d)) < 200_000]
_SETTINGS: dict[str, Any] = {
    "bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>", "lstrip": False},
    "pad_token": None, "add_bos_token": False, "add_prefix_space": False, "tokenizer_class": "X",
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}],
    "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True, "lstrip": False}},
    "additional_special_tokens": ["<|a|>"], "model_max_length": 2048,
}  # fmt: skip


def _read_config(data: bytes, folder: Path) -> None:
    _file(folder, "config.json", _json_bytes(edited(_pick(_CONFIGS, data), data[1:])))
    describe(read_config(folder))


def _read_tokenizer(data: bytes, folder: Path) -> None:
    document = edited(_pick(_TOKENIZERS, data), data[2:])
    _file(folder, "tokenizer.json", _json_bytes(document))
    settings = edited(_SETTINGS, data[2:]) if data[1:2] > b"\x80" else _SETTINGS
    _file(folder, "tokenizer_config.json", _json_bytes(settings))
    read_vocabulary(folder, {}, 512)


def _read_index(data: bytes, folder: Path) -> None:
    index = {
        "metadata": {"total_size": 8},
        "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"},
    }
    path = _file(folder, "model.safetensors.index.json", _json_bytes(edited(index, data)))
    read_index(path)
    _file(folder, "config.json", b"{}")
    open_checkpoint(folder)


# ---- other files


def _read_sentencepiece(data: bytes, folder: Path) -> None:
    read_sentencepiece(_file(folder, "spiece.model", data))


def _sentencepiece_seeds() -> list[bytes]:
    paths = [*(TESTS / "reference").rglob("spiece.model"), *(TESTS / "reference").rglob("*.model")]
    return [path.read_bytes()[:_MOST] for path in paths] or [
        b"\x0a\x0a\x0a\x03abc\x15\x00\x00\x80\x3f"
    ]


def _read_charsmap(data: bytes, folder: Path) -> None:
    table = CharsMap(data)
    table.normalize("Ｆｕｌｌ ﬁ".encode() + data[:40])


def _charsmap_seeds() -> list[bytes]:
    units = [0] * 512
    return [u32(2048) + struct.pack("<512I", *units) + b"a\0bc\0", b""]


# ---- what users give


def _parse(values: Iterator[Any]) -> None:
    parser = RecordParser(SamplingSettings(), StopSettings(8))
    for value in values:
        if not isinstance(value, BadRecord):
            parser.parse(*value)


_RECORDS = [
    b'{"id": 1, "prompt": "It is", "max_tokens": 4}\n\n{"id": "b", "messages": [{"role": "user", '
    b'"content": "Hi"}], "stop": ["."], "n": 2, "seed": 3}\nnot json\n',
    b"\xef\xbb\xbfa prompt\nanother\r\n",
    b'[{"prompt": "a"},\n {"prompt": "b", "temperature": 0.5}]\n',
]
_TABLES = [
    b'id,prompt,stop,messages\n1,"a ""quoted"", text","[""x""]",\n2,,,'
    b'"[{""role"": ""user"", ""content"": ""a\nb""}]"\n',
]
_ANSWERS = [
    b'{"id": 1, "text": "a", "tokens": [1], "finish_reason": "end", "error": null}\n'
    b'{"id": null, "text": null, "tokens": [], "finish_reason": null, "error": "line 2: x", '
    b'"line": 2}\n'
    b'{"id": 3, "te',
]


def _answers(data: bytes) -> list[bytes]:
    """The lines that are answers; the last one may lack its end."""
    found = []
    for line in data.split(b"\n"):
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict) and {"id", "text", "tokens", "error"} <= value.keys():
                found.append(line)
    return found


def _read_journal(data: bytes, folder: Path) -> None:
    path = _file(folder, "out.jsonl", data)
    with Journal(path, resume=True):
        pass
    kept = path.read_bytes() if path.exists() else b""
    if _answers(kept) != _answers(data):
        raise AssertionError("a finished answer was cut off, or changed")


# ---- saved rows


_GEOMETRY = KvGeometry(2, 2, 32, 32)
_FORMS = [KvFormat("f16", "f16", True), KvFormat("q8_0", "q4_0", True)]


def _read_state(data: bytes, folder: Path) -> None:
    source, target = _FORMS if data[:1] < b"\x80" else _FORMS[::-1]
    state = np.frombuffer(data[1:], np.uint8).copy()
    read_layout(state, _GEOMETRY, source, 0, 3)
    reencode_state(state, _GEOMETRY, source, target, first=0, n_cells=3)


def _state_seeds() -> list[bytes]:
    seeds = []
    for number, form in enumerate(_FORMS):
        state = struct.pack("<IiII", 0xAF143CD8, 0, 1, 3)
        state += b"".join(struct.pack("<iIi", i, 1, 0) for i in range(3)) + struct.pack("<II", 0, 2)
        for kind, width in zip(form.types, form.row_bytes(_GEOMETRY), strict=True):
            state += 2 * (struct.pack("<iQ", kind.id, width) + bytes(3 * width))
        seeds.append(bytes([number * 0x80]) + state)
    return seeds


# ---- what a text is held to


_GRAMMARS = [
    b'root ::= "a" ("b" | [c-e]+){2,4} tail?\ntail ::= [^"\\n]* # all\n',
    b'root ::= item ("," item)*\nitem ::= "\\x41" | "(" root ")" | ""\n',
]
_EXPRESSIONS = [rb"[a-z ]{1,80}\.", rb"(?i)(yes|no)( \d+(\.\d+)?)*", b"a{2,5}|\\w+\\b"]
_SCHEMA: dict[str, Any] = {
    "type": "object", "required": ["name"], "additionalProperties": False,
    "$defs": {"tag": {"enum": ["a", "b"]}},
    "properties": {
        "name": {"type": "string", "maxLength": 10, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "either": {"anyOf": [{"type": "null"}, {"type": "number", "multipleOf": 2}]},
    },
}  # fmt: skip


def _compile(kind: str, text: str) -> None:
    # without what it remembers of earlier ones
    compiled.__wrapped__(kind, text)


def _read_schema(data: bytes, folder: Path) -> None:
    _compile("json_schema", json.dumps(edited(_SCHEMA, data), skipkeys=True))


_CONVERT, _NATIVE, _RUNTIME = (ConvertError,), (NativeError,), (RuntimeFailure,)

TARGETS: dict[str, Target] = {
    "gguf": Target(_read_gguf, _gguf_seeds, _NATIVE),
    "imatrix": Target(
        lambda data, folder: read_imatrix(_file(folder, "a.imatrix", data)), _imatrix_seeds,
        (*_CONVERT, *_NATIVE),
    ),
    "statistics": Target(_read_statistics, _statistics_seeds, (*_CONVERT, *_NATIVE)),
    "adapter": Target(_read_adapter, _adapter_seeds, (*_CONVERT, *_NATIVE)),
    "safetensors": Target(_read_safetensors, _safetensors_seeds, _CONVERT),
    "torch": Target(_read_torch, _torch_seeds, _CONVERT),
    "ggml": Target(_read_ggml, _ggml_seeds, _CONVERT),
    "config": Target(_read_config, _edits, (*_CONVERT, ConfigError)),
    "tokenizer": Target(_read_tokenizer, _edits, _CONVERT),
    "index": Target(_read_index, _edits, _CONVERT),
    "sentencepiece": Target(_read_sentencepiece, _sentencepiece_seeds, _CONVERT),
    "charsmap": Target(_read_charsmap, _charsmap_seeds, (ValueError,)),
    "records": Target(
        lambda data, _: _parse(read_pipe(io.BytesIO(data))), lambda: _RECORDS, _RUNTIME
    ),
    "table": Target(
        lambda data, folder: _parse(read_values(_file(folder, "in.csv", data))), lambda: _TABLES,
        _RUNTIME,
    ),
    "journal": Target(_read_journal, lambda: _ANSWERS, _RUNTIME),
    "state": Target(_read_state, _state_seeds, _NATIVE),
    "grammar": Target(
        lambda data, _: _compile("grammar", data.decode("utf-8", "replace")), lambda: _GRAMMARS,
        _NATIVE,
    ),
    "regex": Target(
        lambda data, _: _compile("regex", data.decode("utf-8", "replace")), lambda: _EXPRESSIONS,
        _NATIVE,
    ),
    "schema": Target(_read_schema, _edits, _NATIVE),
}  # fmt: skip
