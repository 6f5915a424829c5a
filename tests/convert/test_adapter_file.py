"""Adapters that are added while a model runs: PEFT's merged logits, and what is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import ADAPTERS, adapter_file, base_of, llama_file, random_adapter
from comparison import Comparison, all_logits, compare_logits, has_windows
from gguf_parts import GgufParts
from helpers import REFERENCES, TESTS, edit_json
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from infer_os.convert.adapter_file import adapter_digest, is_sound, write_adapter
from infer_os.convert.adapters import checked
from infer_os.convert.errors import (
    ConvertError,
    FileFormatError,
    SourceChanged,
    SourceError,
    UnsupportedError,
)
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.source import AdapterSource
from infer_os.models.network import Role
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.lora_adapter import load_adapter
from infer_os.native.model import LlamaModel

BASES = {path.name: path for path in REFERENCES}
GPTJ = TESTS / "reference/adapters/gptj"
#: PEFT has kept copies of the head of this one.
WITH_COPIES = "gptj-patterns"
USABLE = [path for path in ADAPTERS if path.name != WITH_COPIES]


def made(base: Path, target: Path, kind: str = "f32", *, fold_rotation: bool = False) -> Path:
    convert(ConvertSettings(base, target, kind, force=True, fold_rotation=fold_rotation))
    return target


def logits_with(
    model: Path, file: Path, tokens: list[int], *, native: bool = True, scale: float = 1.0
) -> NDArray[np.float32]:
    """Logits after every token, (n_tokens, n_vocab); afterwards the plain model's are unchanged."""
    with LlamaModel(model, native=native) as loaded:
        loaded.adapters["one"] = load_adapter(loaded.pointer, loaded.header, file, scale)
        n = len(tokens)
        params = ContextParams(n_ctx=max(64, n), n_threads=2, n_batch=n, n_outputs_max=n)
        with Context(loaded, params) as context:
            found = []
            for name in ("", "one", ""):
                context.use_adapter(name)
                context.trim(0)
                context.decode(tokens, 0, outputs=n)
                found.append(np.stack([context.logits(i).copy() for i in range(n)]))
    assert np.array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1], atol=1e-3)
    return found[1]


def tokens_of(base: Path) -> list[int]:
    return [int(t) for t in np.load(base / "tokens.npy")]


def compared(adapter: Path, got: NDArray[np.float32]) -> Comparison:
    result = compare_logits(np.load(adapter / "logits.npy"), got)
    assert result.kl < 1e-5
    assert result.argmax_equal == result.n_tokens
    return result


@pytest.mark.parametrize("native", [True, False], ids=["ours", "stock"])
@pytest.mark.parametrize("adapter", USABLE, ids=lambda path: path.name)
def test_logits_equal_those_that_peft_merges(adapter: Path, native: bool, tmp_path: Path) -> None:
    base = base_of(adapter)
    model = made(base, tmp_path / "m.gguf")
    file = adapter_file(adapter, model, tmp_path / "a.gguf")
    compared(adapter, logits_with(model, file, tokens_of(base), native=native))


@pytest.mark.parametrize("name", ["gptj", "neox-parallel"])
def test_a_rotation_in_the_weights(name: str, tmp_path: Path) -> None:
    adapter = TESTS / "reference/adapters" / name
    model = made(base_of(adapter), tmp_path / "m.gguf", fold_rotation=True)
    file = adapter_file(adapter, model, tmp_path / "a.gguf")
    compared(adapter, logits_with(model, file, tokens_of(base_of(adapter))))


_NEIGHBOURS = (
    "codegen", "opt", "galactica", "bigcode", "gpt-neo", "xglm", "mpt", "gpt2-layer-scales",
    "gpt2-mup", "neox-yarn",
)  # fmt: skip


@pytest.mark.parametrize("name", _NEIGHBOURS)
def test_neighbours_as_merged(name: str, tmp_path: Path) -> None:
    """Other layouts of q, k and v, factors in the weights: as when it is added while converting."""
    base = BASES[name]
    adapter = random_adapter(base, tmp_path / "adapter")
    model = made(base, tmp_path / "m.gguf")
    merged = tmp_path / "merged.gguf"
    convert(ConvertSettings(base, merged, "f32", adapters=(AdapterSource(adapter, 1.0, "a"),)))
    file = adapter_file(adapter, model, tmp_path / "a.gguf")
    tokens = tokens_of(base)
    got = logits_with(model, file, tokens, native=has_windows(model))
    result = compare_logits(all_logits(merged, tokens), got)
    assert result.kl < 1e-6 and result.argmax_equal == len(tokens)


def test_a_scale(tmp_path: Path) -> None:
    base, tokens = BASES["gptj"], tokens_of(BASES["gptj"])
    model = made(base, tmp_path / "m.gguf")
    halved = shutil.copytree(GPTJ, tmp_path / "halved")
    edit_json(halved / "adapter_config.json", lambda config: config.update(lora_alpha=4))
    whole = adapter_file(GPTJ, model, tmp_path / "a.gguf")
    half = adapter_file(halved, model, tmp_path / "b.gguf")
    got = logits_with(model, whole, tokens, scale=0.5)
    assert np.allclose(got, logits_with(model, half, tokens), atol=1e-4)


@pytest.mark.parametrize(("kind", "most"), [("f32", 1e-5), ("f16", 1e-4)])
def test_a_file_of_llama_cpps_format(kind: str, most: float, tmp_path: Path) -> None:
    """Its rank is 4, which our kernels would not take, and its factor is in the metadata."""
    base = BASES["gptj"]
    model = made(base, tmp_path / "m.gguf")
    foreign = llama_file(GPTJ, model, tmp_path / "foreign.gguf", kind)
    assert {t.shape[1] for t in read_gguf_header(foreign).tensors if t.name.endswith("_a")} <= {
        4, 12
    }  # fmt: skip
    file = adapter_file(foreign, model, tmp_path / "a.gguf")
    got = logits_with(model, file, tokens_of(base))
    assert compare_logits(np.load(GPTJ / "logits.npy"), got).kl < most
    ranks = {t.shape[1] for t in read_gguf_header(file).tensors if t.name.endswith("lora_a")}
    assert ranks == {16}


def refused(
    adapter: Path, model: Path, place: Path, error: type[ConvertError | GgufError], *said: str
) -> None:
    with pytest.raises(error) as raised:
        adapter_file(adapter, model, place / "a.gguf")
    assert all(text in str(raised.value) for text in said), raised.value
    assert "\n" not in str(raised.value)
    assert not (place / "a.gguf").exists()
    assert not list(place.glob(".*.part"))


def test_what_the_graph_adds_nothing_to(tmp_path: Path) -> None:
    model = made(BASES["gpt2"], tmp_path / "m.gguf")
    tied = random_adapter(BASES["gpt2"], tmp_path / "tied", roles=(Role.TOKEN_EMBEDDING,))
    refused(tied, model, tmp_path, UnsupportedError, "where the head is the embedding",
            f"add it while the model is converted: --lora {tied}")  # fmt: skip
    places = random_adapter(BASES["gpt2"], tmp_path / "places", roles=(Role.POSITION_EMBEDDING,))
    refused(places, model, tmp_path, UnsupportedError, "wpe.weight", "--lora")


def test_copies_of_tensors(tmp_path: Path) -> None:
    adapter = TESTS / "reference/adapters" / WITH_COPIES
    model = made(BASES["gptj"], tmp_path / "m.gguf", "q8_0")
    refused(adapter, model, tmp_path, UnsupportedError, "lm_head", "--lora")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    adapter = shutil.copytree(GPTJ, tmp_path / "adapter")
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values()))[0, 0] = np.nan
    save_file(weights, path)
    model = made(BASES["gptj"], tmp_path / "m.gguf")
    refused(adapter, model, tmp_path, FileFormatError, "NaN or infinite")


def test_values_that_are_too_large(tmp_path: Path) -> None:
    model = made(BASES["gptj"], tmp_path / "m.gguf")
    parts = GgufParts.read(llama_file(GPTJ, model, tmp_path / "foreign.gguf"))
    for value, said in ((1e30, "no weight is larger than 65504"), (np.inf, "NaN or infinite")):
        parts.tensor("blk.0.attn_output.weight.lora_a").data = np.float32(value).tobytes()
        bad = parts.write(tmp_path / "bad.gguf")
        refused(bad, model, tmp_path, FileFormatError, "bad.gguf", "blk.0.attn_output", said)


def test_a_file_is_sound_or_not(tmp_path: Path) -> None:
    header = read_gguf_header(made(BASES["gptj"], tmp_path / "m.gguf"))
    source = AdapterSource(GPTJ, 1.0, "")
    path = tmp_path / f"{adapter_digest(source, header)}.gguf"
    assert not is_sound(path)
    write_adapter(source, header, path)
    assert is_sound(path)
    data = path.read_bytes()
    start = read_gguf_header(path).data_offset
    for at in (data.index(b"inferos.adapter.sha256") + 40, start - 40, start, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert not is_sound(path), at
    for wrong in (data[:-1], data[:start], b"", data + b"\0"):
        path.write_bytes(wrong)
        assert not is_sound(path)
    path.write_bytes(data)
    assert is_sound(path)
    path.rename(tmp_path / "other.gguf")
    assert not is_sound(tmp_path / "other.gguf")


@pytest.mark.parametrize("kind", ["peft", "gguf"])
def test_a_source_that_changes_meanwhile(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(BASES["gptj"], tmp_path / "m.gguf")
    adapter = shutil.copytree(GPTJ, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    if kind == "gguf":
        adapter = weights = llama_file(GPTJ, model, tmp_path / "foreign.gguf")

    def cut(*given: Any) -> Any:
        os.truncate(weights, weights.stat().st_size // 2)
        return checked(*given)

    monkeypatch.setattr("infer_os.convert.adapter_file.checked", cut)
    refused(adapter, model, tmp_path, SourceChanged, "while it was")


def test_another_models_adapter(tmp_path: Path) -> None:
    model = made(BASES["gptj"], tmp_path / "m.gguf")
    refused(ADAPTERS[0], model, tmp_path, SourceError, "--adapter", "it was made for someone/bloom")
    other = made(BASES["gpt2"], tmp_path / "other.gguf")
    foreign = llama_file(TESTS / "reference/adapters/gpt2", other, tmp_path / "foreign.gguf")
    refused(foreign, model, tmp_path, GgufError, "an adapter for 'gpt2'; m.gguf is 'phi2'")
    refused(model, model, tmp_path, GgufError, "not one of a LoRA adapter")


def test_a_model_that_does_not_say_its_layout(tmp_path: Path) -> None:
    parts = GgufParts.read(made(BASES["gptj"], tmp_path / "m.gguf"))
    del parts.keys["inferos.source.config"]
    model = parts.write(tmp_path / "old.gguf")
    refused(GPTJ, model, tmp_path, UnsupportedError, "convert it again", "as a GGUF file")


def test_the_digest_knows_content_and_layout(tmp_path: Path) -> None:
    header = read_gguf_header(made(BASES["gptj"], tmp_path / "m.gguf"))
    folded = read_gguf_header(made(BASES["gptj"], tmp_path / "f.gguf", fold_rotation=True))
    quantized = read_gguf_header(made(BASES["gptj"], tmp_path / "q.gguf", "q8_0"))
    changed = shutil.copytree(GPTJ, tmp_path / "changed")
    edit_json(changed / "adapter_config.json", lambda config: config.update(lora_alpha=4))

    def digest(folder: Path, header: object) -> str:
        return adapter_digest(AdapterSource(folder, 1.0, ""), header)  # type: ignore[arg-type]

    assert digest(GPTJ, header) == digest(GPTJ, quantized)
    assert len({digest(GPTJ, header), digest(GPTJ, folded), digest(changed, header)}) == 3
