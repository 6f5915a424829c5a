"""The catalog of known models: its place on the hub, its sizes, its draft partner.

Pure data. ``CatalogModel.config`` spells a geometry as that model's ``config.json`` does, so that
:func:`infer_os.models.architectures.describe` gives its network, and with it every size, before
any download. Geometries are those of the published configs; the tests compare the parameters that
follow from them with the published counts.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .styles import DIALOGUE, STYLES

_NEOX, _GPTJ = "GPTNeoXForCausalLM", "GPTJForCausalLM"
_BLOOM, _GPT2 = "BloomForCausalLM", "GPT2LMHeadModel"


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of a network. ``rotary`` is the rotated share of a head, if heads are rotated."""

    n_layer: int
    n_embd: int
    n_head: int
    n_ff: int
    n_vocab: int
    n_ctx: int
    rotary: float = 0.25
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A published model.

    ``id`` is its hub id, ``aliases`` older or other ids of the same repository; ``revision`` is
    the branch to take; ``weights`` the format of its files (``safetensors``, or ``bin`` if the hub
    has no safetensors of it); ``dtype`` their type; ``draft`` the id of a small model with the same
    tokens; ``style`` how its conversations are written.
    """

    id: str
    architecture: str
    geometry: Geometry
    weights: str = "safetensors"
    dtype: str = "F16"
    revision: str = "main"
    draft: str | None = None
    style: str = "dialogue"
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The short name: the id without its owner."""
        return self.id.rpartition("/")[2]

    @property
    def config(self) -> dict[str, Any]:
        """The part of its config.json that gives its sizes."""
        return {"architectures": [self.architecture], **_SPELLINGS[self.architecture](self)}


def _neox_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "hidden_size": g.n_embd, "num_hidden_layers": g.n_layer, "num_attention_heads": g.n_head,
        "intermediate_size": g.n_ff, "vocab_size": g.n_vocab, "max_position_embeddings": g.n_ctx,
        "rotary_pct": g.rotary, "use_parallel_residual": g.parallel, "hidden_act": "gelu",
        "tie_word_embeddings": False,
    }  # fmt: skip


def _gptj_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "n_embd": g.n_embd, "n_layer": g.n_layer, "n_head": g.n_head, "n_inner": g.n_ff,
        "vocab_size": g.n_vocab, "n_positions": g.n_ctx,
        "rotary_dim": int(g.n_embd // g.n_head * g.rotary), "tie_word_embeddings": False,
    }  # fmt: skip


def _bloom_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "hidden_size": g.n_embd, "n_layer": g.n_layer, "n_head": g.n_head,
        "vocab_size": g.n_vocab, "seq_length": g.n_ctx,
    }  # fmt: skip


def _gpt2_config(model: CatalogModel) -> dict[str, Any]:
    g = model.geometry
    return {
        "n_embd": g.n_embd, "n_layer": g.n_layer, "n_head": g.n_head, "n_inner": g.n_ff,
        "vocab_size": g.n_vocab, "n_positions": g.n_ctx,
    }  # fmt: skip


_SPELLINGS: Mapping[str, Callable[[CatalogModel], dict[str, Any]]] = {
    _NEOX: _neox_config, _GPTJ: _gptj_config, _BLOOM: _bloom_config, _GPT2: _gpt2_config,
}  # fmt: skip


def _sized(n_layer: int, n_embd: int, n_head: int, n_vocab: int, n_ctx: int) -> Geometry:
    """A geometry whose feed-forward is four times the embedding, as nearly all are."""
    return Geometry(n_layer, n_embd, n_head, 4 * n_embd, n_vocab, n_ctx)


_NEOX_20B = _sized(44, 6144, 64, 50432, 2048)
_PYTHIA_12B = (36, 5120, 40)
_GPTJ_6B = _sized(28, 4096, 16, 50400, 2048)
_SMALL_DRAFT = "EleutherAI/pythia-160m"
_GPT2_DRAFT = "distilbert/distilgpt2"
_BLOOM_DRAFT = "bigscience/bloom-560m"


def _pythias() -> Iterator[CatalogModel]:
    sizes = {
        "70m": (6, 512, 8, 50304), "160m": (12, 768, 12, 50304), "410m": (24, 1024, 16, 50304),
        "1b": (16, 2048, 8, 50304), "1.4b": (24, 2048, 16, 50304), "2.8b": (32, 2560, 32, 50304),
        "6.9b": (32, 4096, 32, 50432), "12b": (*_PYTHIA_12B, 50688),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head, n_vocab) in sizes.items():
        draft = "EleutherAI/pythia-70m" if n_embd > 1024 else None
        for suffix in ("", "-deduped"):
            yield CatalogModel(
                f"EleutherAI/pythia-{size}{suffix}", _NEOX,
                _sized(n_layer, n_embd, n_head, n_vocab, 2048), draft=draft,
            )  # fmt: skip


def _blooms() -> Iterator[CatalogModel]:
    sizes = {
        "560m": (24, 1024, 16), "1b1": (24, 1536, 16), "1b7": (24, 2048, 16),
        "3b": (30, 2560, 32), "7b1": (30, 4096, 32),
    }  # fmt: skip
    for family in ("bloom", "bloomz"):
        for size, (n_layer, n_embd, n_head) in sizes.items():
            yield CatalogModel(
                f"bigscience/{family}-{size}", _BLOOM,
                _sized(n_layer, n_embd, n_head, 250880, 2048),
                draft=_BLOOM_DRAFT if n_embd > 2048 else None,
                style="bloomz" if family == "bloomz" else "dialogue",
            )  # fmt: skip


def _cerebras() -> Iterator[CatalogModel]:
    sizes = {
        "111M": (10, 768, 12), "256M": (14, 1088, 17), "590M": (18, 1536, 12),
        "1.3B": (24, 2048, 16), "2.7B": (32, 2560, 32), "6.7B": (32, 4096, 32),
        "13B": (40, 5120, 40),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head) in sizes.items():
        yield CatalogModel(
            f"cerebras/Cerebras-GPT-{size}", _GPT2, _sized(n_layer, n_embd, n_head, 50257, 2048),
            weights="bin", dtype="F32", draft=_GPT2_DRAFT if n_embd > 1088 else None,
        )  # fmt: skip


def _gpt2s() -> Iterator[CatalogModel]:
    sizes = {
        "": (12, 768, 12), "-medium": (24, 1024, 16), "-large": (36, 1280, 20),
        "-xl": (48, 1600, 25),
    }  # fmt: skip
    for suffix, size in sizes.items():
        yield CatalogModel(
            f"openai-community/gpt2{suffix}", _GPT2, _sized(*size, 50257, 1024), dtype="F32",
            draft=_GPT2_DRAFT if size[0] > 12 else None, aliases=(f"gpt2{suffix}",),
        )  # fmt: skip
    yield CatalogModel(
        "distilbert/distilgpt2", _GPT2, _sized(6, 768, 12, 50257, 1024), dtype="F32",
        aliases=("distilgpt2",),
    )  # fmt: skip
    for name, shape in zip(("small", "medium", "large"), sizes.values(), strict=False):
        yield CatalogModel(
            f"microsoft/DialoGPT-{name}", _GPT2, _sized(*shape, 50257, 1024), weights="bin",
            draft="microsoft/DialoGPT-small" if name == "large" else None, style="dialogpt",
        )  # fmt: skip


def _neox_relatives() -> Iterator[CatalogModel]:
    for size, geometry in {
        "3b": _sized(32, 2560, 32, 50280, 2048), "7b": _sized(32, 4096, 32, 50280, 2048),
        "12b": _sized(*_PYTHIA_12B, 50280, 2048),
    }.items():  # fmt: skip
        yield CatalogModel(
            f"databricks/dolly-v2-{size}", _NEOX, geometry, weights="bin", draft=_SMALL_DRAFT,
            style="instruction",
        )  # fmt: skip
    incite_3b = Geometry(32, 2560, 32, 10240, 50432, 2048, rotary=1.0, parallel=False)
    incite_7b = Geometry(32, 4096, 32, 16384, 50432, 2048, rotary=1.0, parallel=False)
    for kind in ("Base", "Chat", "Instruct"):
        style = "human-bot" if kind == "Chat" else "dialogue"
        for name, geometry in ((f"{kind}-3B-v1", incite_3b), (f"7B-{kind}", incite_7b)):
            yield CatalogModel(
                f"togethercomputer/RedPajama-INCITE-{name}", _NEOX, geometry, weights="bin",
                draft=_SMALL_DRAFT, style=style,
            )  # fmt: skip
    yield CatalogModel(
        "OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5", _NEOX,
        _sized(*_PYTHIA_12B, 50288, 2048), weights="bin", draft=_SMALL_DRAFT,
        style="open-assistant",
    )  # fmt: skip
    for kind in ("base", "tuned"):
        for size, geometry in {
            "3b": _sized(16, 4096, 32, 50688, 4096), "7b": _sized(16, 6144, 48, 50432, 4096),
        }.items():  # fmt: skip
            yield CatalogModel(
                f"stabilityai/stablelm-{kind}-alpha-{size}", _NEOX, geometry, weights="bin",
                draft=_SMALL_DRAFT, style="stablelm" if kind == "tuned" else "dialogue",
            )  # fmt: skip
    yield CatalogModel(
        "togethercomputer/GPT-NeoXT-Chat-Base-20B", _NEOX, _NEOX_20B, weights="bin",
        draft=_SMALL_DRAFT, style="human-bot",
    )  # fmt: skip
    for suffix in ("", "-instruction-sft", "-instruction-sft-v2", "-instruction-ppo"):
        yield CatalogModel(
            f"rinna/japanese-gpt-neox-3.6b{suffix}", _NEOX,
            Geometry(36, 2816, 22, 11264, 32000, 2048, rotary=1.0, parallel=False),
            style="rinna" if suffix else "japanese",
        )  # fmt: skip
    yield CatalogModel(
        "cyberagent/open-calm-7b", _NEOX,
        Geometry(32, 4096, 32, 16384, 52224, 2048, rotary=1.0, parallel=False), weights="bin",
        style="japanese",
    )  # fmt: skip


def _gptj_relatives() -> Iterator[CatalogModel]:
    for name, style in (
        ("togethercomputer/GPT-JT-6B-v1", "plain"), ("PygmalionAI/pygmalion-6b", "pygmalion"),
        ("nomic-ai/gpt4all-j", "gpt4all"), ("databricks/dolly-v1-6b", "instruction"),
    ):  # fmt: skip
        yield CatalogModel(name, _GPTJ, _GPTJ_6B, weights="bin", draft=_GPT2_DRAFT, style=style)


#: Every known model.
CATALOG: tuple[CatalogModel, ...] = (
    CatalogModel("EleutherAI/gpt-neox-20b", _NEOX, _NEOX_20B, draft=_SMALL_DRAFT),
    # main holds 24 GB of float32; the branch has the same weights in the type they were trained in
    CatalogModel(
        "EleutherAI/gpt-j-6B", _GPTJ, _GPTJ_6B, weights="bin", revision="float16",
        draft=_GPT2_DRAFT, aliases=("EleutherAI/gpt-j-6b",),
    ),
    *_blooms(),
    *_gpt2s(),
    *_pythias(),
    *_neox_relatives(),
    *_gptj_relatives(),
    *_cerebras(),
    CatalogModel(
        "rinna/japanese-gpt2-medium", _GPT2, _sized(24, 1024, 16, 32000, 1024), dtype="F32",
        style="japanese",
    ),
    CatalogModel(
        "rinna/japanese-gpt2-small", _GPT2, _sized(12, 768, 12, 32000, 1024), dtype="F32",
        style="japanese",
    ),
)  # fmt: skip


def find_model(name: str) -> CatalogModel | None:
    """The model with this hub id, alias or short name, in any case; None if unknown."""
    return _BY_NAME.get(name.lower())


def near_names(text: str, others: Iterable[str] = ()) -> str:
    """ "; did you mean ...?" with names of the catalog or of ``others``, or nothing."""
    known = (name for model in CATALOG for name in (model.id, model.name, *model.aliases))
    others = tuple(others)
    names = {name.rpartition("/")[2].lower(): name for name in others}  # of a folder, its last part
    names |= {name.lower(): name for name in (*known, *others)}
    near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(names[name] for name in near)}?" if near else ""


def model_of(metadata: Mapping[str, Any]) -> CatalogModel | None:
    """The known model that a GGUF file was made from, if it was.

    The file's metadata says which repository it was converted from, or its name; a copy
    of a known model under another owner counts as that model.
    """
    keys = ("inferos.source.repository", "general.source.huggingface.repository", "general.name")
    for key in keys:
        name = str(metadata.get(key, ""))
        model = find_model(name) or find_model(name.rpartition("/")[2])
        if model is not None:
            return model
    return None


def style_for(metadata: Mapping[str, Any]) -> str:
    """How conversations with a GGUF file's model are written: the name of a style in ``STYLES``.

    Unknown models are taken for base models and get ``dialogue``.
    """
    model = model_of(metadata)
    return model.style if model is not None and model.style in STYLES else DIALOGUE.name


def _index() -> dict[str, CatalogModel]:
    names: dict[str, CatalogModel] = {}
    for model in CATALOG:
        for name in (model.id, model.name, *model.aliases):
            known = names.setdefault(name.lower(), model)
            if known is not model:
                raise ValueError(f"catalog: {name!r} names {known.id} and {model.id}")
    return names


_BY_NAME = _index()
