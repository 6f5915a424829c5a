"""The catalog's rows of GPT-NeoX, GPT-J, BLOOM and GPT-2, the families with the most models."""

from __future__ import annotations

from collections.abc import Iterator

from .published import BLOOM, GPT2, GPTJ, NEOX, CatalogModel, Geometry, sized

_NEOX_20B = sized(44, 6144, 64, 50432, 2048)
_PYTHIA_12B = (36, 5120, 40)
_GPTJ_6B = sized(28, 4096, 16, 50400, 2048)
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
                f"EleutherAI/pythia-{size}{suffix}", NEOX,
                sized(n_layer, n_embd, n_head, n_vocab, 2048), draft=draft,
            )  # fmt: skip


def _blooms() -> Iterator[CatalogModel]:
    sizes = {
        "560m": (24, 1024, 16), "1b1": (24, 1536, 16), "1b7": (24, 2048, 16),
        "3b": (30, 2560, 32), "7b1": (30, 4096, 32),
    }  # fmt: skip
    for family in ("bloom", "bloomz"):
        for size, (n_layer, n_embd, n_head) in sizes.items():
            yield CatalogModel(
                f"bigscience/{family}-{size}", BLOOM,
                sized(n_layer, n_embd, n_head, 250880, 2048),
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
            f"cerebras/Cerebras-GPT-{size}", GPT2, sized(n_layer, n_embd, n_head, 50257, 2048),
            weights="bin", dtype="F32", draft=_GPT2_DRAFT if n_embd > 1088 else None,
        )  # fmt: skip


def _gpt2s() -> Iterator[CatalogModel]:
    sizes = {
        "": (12, 768, 12), "-medium": (24, 1024, 16), "-large": (36, 1280, 20),
        "-xl": (48, 1600, 25),
    }  # fmt: skip
    for suffix, size in sizes.items():
        yield CatalogModel(
            f"openai-community/gpt2{suffix}", GPT2, sized(*size, 50257, 1024), dtype="F32",
            draft=_GPT2_DRAFT if size[0] > 12 else None, aliases=(f"gpt2{suffix}",),
        )  # fmt: skip
    yield CatalogModel(
        "distilbert/distilgpt2", GPT2, sized(6, 768, 12, 50257, 1024), dtype="F32",
        aliases=("distilgpt2",),
    )  # fmt: skip
    for name, shape in zip(("small", "medium", "large"), sizes.values(), strict=False):
        yield CatalogModel(
            f"microsoft/DialoGPT-{name}", GPT2, sized(*shape, 50257, 1024), weights="bin",
            draft="microsoft/DialoGPT-small" if name == "large" else None, style="dialogpt",
        )  # fmt: skip


def _neox_relatives() -> Iterator[CatalogModel]:
    for size, geometry in {
        "3b": sized(32, 2560, 32, 50280, 2048), "7b": sized(32, 4096, 32, 50280, 2048),
        "12b": sized(*_PYTHIA_12B, 50280, 2048),
    }.items():  # fmt: skip
        yield CatalogModel(
            f"databricks/dolly-v2-{size}", NEOX, geometry, weights="bin", draft=_SMALL_DRAFT,
            style="instruction",
        )  # fmt: skip
    incite_3b = Geometry(32, 2560, 32, 10240, 50432, 2048, rotary=1.0, parallel=False)
    incite_7b = Geometry(32, 4096, 32, 16384, 50432, 2048, rotary=1.0, parallel=False)
    for kind in ("Base", "Chat", "Instruct"):
        style = "human-bot" if kind == "Chat" else "dialogue"
        for name, geometry in ((f"{kind}-3B-v1", incite_3b), (f"7B-{kind}", incite_7b)):
            yield CatalogModel(
                f"togethercomputer/RedPajama-INCITE-{name}", NEOX, geometry, weights="bin",
                draft=_SMALL_DRAFT, style=style,
            )  # fmt: skip
    yield CatalogModel(
        "OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5", NEOX,
        sized(*_PYTHIA_12B, 50288, 2048), weights="bin", draft=_SMALL_DRAFT,
        style="open-assistant",
    )  # fmt: skip
    for kind in ("base", "tuned"):
        for size, geometry in {
            "3b": sized(16, 4096, 32, 50688, 4096), "7b": sized(16, 6144, 48, 50432, 4096),
        }.items():  # fmt: skip
            yield CatalogModel(
                f"stabilityai/stablelm-{kind}-alpha-{size}", NEOX, geometry, weights="bin",
                draft=_SMALL_DRAFT, style="stablelm" if kind == "tuned" else "dialogue",
            )  # fmt: skip
    yield CatalogModel(
        "togethercomputer/GPT-NeoXT-Chat-Base-20B", NEOX, _NEOX_20B, weights="bin",
        draft=_SMALL_DRAFT, style="human-bot",
    )  # fmt: skip
    for suffix in ("", "-instruction-sft", "-instruction-sft-v2", "-instruction-ppo"):
        yield CatalogModel(
            f"rinna/japanese-gpt-neox-3.6b{suffix}", NEOX,
            Geometry(36, 2816, 22, 11264, 32000, 2048, rotary=1.0, parallel=False),
            style="rinna" if suffix else "japanese",
        )  # fmt: skip
    yield CatalogModel(
        "cyberagent/open-calm-7b", NEOX,
        Geometry(32, 4096, 32, 16384, 52224, 2048, rotary=1.0, parallel=False), weights="bin",
        style="japanese",
    )  # fmt: skip


def _gptj_relatives() -> Iterator[CatalogModel]:
    for name, style in (
        ("togethercomputer/GPT-JT-6B-v1", "plain"), ("PygmalionAI/pygmalion-6b", "pygmalion"),
        ("nomic-ai/gpt4all-j", "gpt4all"), ("databricks/dolly-v1-6b", "instruction"),
    ):  # fmt: skip
        yield CatalogModel(name, GPTJ, _GPTJ_6B, weights="bin", draft=_GPT2_DRAFT, style=style)


#: The families' models.
FAMILY_MODELS: tuple[CatalogModel, ...] = (
    CatalogModel("EleutherAI/gpt-neox-20b", NEOX, _NEOX_20B, draft=_SMALL_DRAFT),
    # main holds 24 GB of float32; the branch has the same weights in the type they were trained in
    CatalogModel(
        "EleutherAI/gpt-j-6B", GPTJ, _GPTJ_6B, weights="bin", revision="float16",
        draft=_GPT2_DRAFT, aliases=("EleutherAI/gpt-j-6b",),
    ),
    *_blooms(),
    *_gpt2s(),
    *_pythias(),
    *_neox_relatives(),
    *_gptj_relatives(),
    *_cerebras(),
    CatalogModel(
        "rinna/japanese-gpt2-medium", GPT2, sized(24, 1024, 16, 32000, 1024), dtype="F32",
        style="japanese",
    ),
    CatalogModel(
        "rinna/japanese-gpt2-small", GPT2, sized(12, 768, 12, 32000, 1024), dtype="F32",
        style="japanese",
    ),
)  # fmt: skip
