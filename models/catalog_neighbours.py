"""The catalog's rows of further architectures, and of less known models of the four families."""

from __future__ import annotations

from collections.abc import Iterator

from .published import (
    BIGCODE,
    BLOOM,
    CODEGEN,
    GPT2,
    GPT_NEO,
    GPTJ,
    MPT,
    NEOX,
    OPT,
    XGLM,
    CatalogModel,
    Geometry,
    sized,
)

#: Layers, width and heads of models that differ in little else.
Sizes = dict[str, tuple[int, int, int]]

_GPT2_DRAFT, _NEOX_DRAFT = "distilbert/distilgpt2", "EleutherAI/pythia-160m"


def _codegens() -> Iterator[CatalogModel]:
    sizes = {
        "350M": (20, 1024, 16, 0.5), "2B": (32, 2560, 32, 0.8), "6B": (33, 4096, 16, 0.25),
        "16B": (34, 6144, 24, 0.25),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head, rotary) in sizes.items():
        geometry = Geometry(n_layer, n_embd, n_head, 4 * n_embd, 51200, 2048, rotary)
        names = [f"Salesforce/codegen-{size}-{kind}" for kind in ("nl", "multi", "mono")]
        names += [f"NumbersStation/nsql-{size}"] if size != "16B" else []
        for name in names:
            yield CatalogModel(
                name, CODEGEN, geometry, weights="bin", style="plain",
                draft="Salesforce/codegen-350M-multi" if size != "350M" else None,
            )  # fmt: skip


def _starcoders() -> Iterator[CatalogModel]:
    tiny = "bigcode/tiny_starcoder_py"
    yield CatalogModel(
        tiny, BIGCODE, Geometry(20, 768, 12, 3072, 49152, 8192), dtype="F32", style="plain"
    )
    sizes: Sizes = {
        "starcoderbase-1b": (24, 2048, 16), "starcoderbase-3b": (36, 2816, 22),
        "starcoderbase-7b": (42, 4096, 32), "starcoderbase": (40, 6144, 48),
        "starcoder": (40, 6144, 48), "starcoderplus": (40, 6144, 48),
    }  # fmt: skip
    for name, size in sizes.items():
        yield CatalogModel(
            f"bigcode/{name}", BIGCODE, sized(*size, 49152, 8192), dtype="F32", draft=tiny,
            style="plain",
        )  # fmt: skip
    for name in ("starchat-alpha", "starchat-beta"):
        yield CatalogModel(
            f"HuggingFaceH4/{name}", BIGCODE, sized(40, 6144, 48, 49156, 8192), weights="bin",
            dtype="BF16", draft=tiny, style="starchat",
        )  # fmt: skip
    yield CatalogModel(
        "bigcode/gpt_bigcode-santacoder", BIGCODE, sized(24, 2048, 16, 49280, 2048), dtype="F32",
        style="plain",
    )  # fmt: skip


def _opts() -> Iterator[CatalogModel]:
    sizes: Sizes = {
        "125m": (12, 768, 12), "1.3b": (24, 2048, 32), "2.7b": (32, 2560, 32),
        "6.7b": (32, 4096, 32), "13b": (40, 5120, 40), "30b": (48, 7168, 56),
        "66b": (64, 9216, 72),
    }  # fmt: skip
    names = [(f"facebook/opt-{size}", size) for size in sizes]
    names += [
        (f"facebook/opt-iml-{kind}{size}", size)
        for kind in ("", "max-")
        for size in ("1.3b", "30b")
    ]
    names += [
        ("KoboldAI/OPT-2.7B-Erebus", "2.7b"), ("KoboldAI/OPT-6.7B-Erebus", "6.7b"),
        ("KoboldAI/OPT-13B-Erebus", "13b"), ("KoboldAI/OPT-2.7B-Nerys-v2", "2.7b"),
        ("KoboldAI/OPT-6B-nerys-v2", "6.7b"), ("KoboldAI/OPT-13B-Nerys-v2", "13b"),
    ]  # fmt: skip
    for name, size in names:
        yield CatalogModel(
            name, OPT, sized(*sizes[size], 50272, 2048), weights="bin",
            draft="facebook/opt-125m" if size != "125m" else None,
        )  # fmt: skip


def _galacticas() -> Iterator[CatalogModel]:
    sizes: Sizes = {
        "125m": (12, 768, 12), "1.3b": (24, 2048, 32), "6.7b": (32, 4096, 32),
        "30b": (48, 7168, 56), "120b": (96, 10240, 80),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head) in sizes.items():
        yield CatalogModel(
            f"facebook/galactica-{size}", OPT,
            Geometry(
                n_layer, n_embd, n_head, 4 * n_embd, 50000, 2048, biases=False, act="gelu"
            ),
            weights="bin", style="plain",
            draft="facebook/galactica-125m" if size != "125m" else None,
        )  # fmt: skip


def _gpt_neos() -> Iterator[CatalogModel]:
    sizes: Sizes = {
        "EleutherAI/gpt-neo-125m": (12, 768, 12), "EleutherAI/gpt-neo-1.3B": (24, 2048, 16),
        "EleutherAI/gpt-neo-2.7B": (32, 2560, 20), "PygmalionAI/pygmalion-2.7b": (32, 2560, 20),
        "roneneldan/TinyStories-1M": (8, 64, 16), "roneneldan/TinyStories-3M": (8, 128, 16),
        "roneneldan/TinyStories-8M": (8, 256, 16), "roneneldan/TinyStories-28M": (8, 512, 16),
        "roneneldan/TinyStories-33M": (4, 768, 16),
    }  # fmt: skip
    for name, (n_layer, n_embd, n_head) in sizes.items():
        style = "plain" if "Tiny" in name else "pygmalion" if "pygmalion" in name else "dialogue"
        yield CatalogModel(
            name, GPT_NEO, sized(n_layer, n_embd, n_head, 50257, 2048),
            weights="safetensors" if "gpt-neo" in name else "bin", dtype="F32",
            draft=_GPT2_DRAFT if n_embd > 1024 else None, style=style,
        )  # fmt: skip


def _xglms() -> Iterator[CatalogModel]:
    sizes = {
        "564M": (24, 1024, 16, 4096), "1.7B": (24, 2048, 16, 8192), "2.9B": (48, 2048, 16, 8192),
        "4.5B": (48, 2048, 16, 16384), "7.5B": (32, 4096, 32, 16384),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head, n_ff) in sizes.items():
        yield CatalogModel(
            f"facebook/xglm-{size}", XGLM,
            Geometry(n_layer, n_embd, n_head, n_ff, 256008, 2048), weights="bin",
            draft="facebook/xglm-564M" if size in ("2.9B", "4.5B", "7.5B") else None,
        )  # fmt: skip


def _mpts() -> Iterator[CatalogModel]:
    small, large = (32, 4096, 32), (48, 7168, 64)
    for name, size, n_ctx, style in (
        ("mpt-7b", small, 2048, "dialogue"), ("mpt-7b-instruct", small, 2048, "instruction"),
        ("mpt-7b-8k", small, 8192, "dialogue"), ("mpt-30b", large, 8192, "dialogue"),
        ("mpt-30b-instruct", large, 8192, "instruction"),
    ):  # fmt: skip
        yield CatalogModel(
            f"mosaicml/{name}", MPT, sized(*size, 50432, n_ctx), weights="bin", dtype="BF16",
            draft=_NEOX_DRAFT, style=style,
        )  # fmt: skip


def _korean() -> Iterator[CatalogModel]:
    sizes = {
        "1.3b": (24, 2048, 16, 0.5), "3.8b": (32, 3072, 24, 0.5), "5.8b": (28, 4096, 16, 0.25),
        "12.8b": (40, 5120, 40, 0.5),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head, rotary) in sizes.items():
        yield CatalogModel(
            f"EleutherAI/polyglot-ko-{size}", NEOX,
            Geometry(n_layer, n_embd, n_head, 4 * n_embd, 30080, 2048, rotary),
            draft="EleutherAI/polyglot-ko-1.3b" if n_embd > 3072 else None,
        )  # fmt: skip
    yield CatalogModel(
        "kakaobrain/kogpt", GPTJ, sized(28, 4096, 16, 64512, 2048), weights="bin",
        revision="KoGPT6B-ryan1.5b-float16",
    )  # fmt: skip
    yield CatalogModel("skt/kogpt2-base-v2", GPT2, sized(12, 768, 12, 51200, 1024), weights="bin",
                       dtype="F32")  # fmt: skip


def _japanese() -> Iterator[CatalogModel]:
    sizes: Sizes = {
        "small": (12, 768, 12), "medium": (24, 1024, 16), "large": (24, 1536, 16),
        "1b": (24, 2048, 16), "3b": (32, 2560, 32),
    }  # fmt: skip
    for size, (n_layer, n_embd, n_head) in sizes.items():
        yield CatalogModel(
            f"cyberagent/open-calm-{size}", NEOX,
            Geometry(n_layer, n_embd, n_head, 4 * n_embd, 52096, 2048, 1.0, parallel=False),
            weights="bin", style="japanese",
            draft="cyberagent/open-calm-small" if n_embd > 1536 else None,
        )  # fmt: skip
    yield CatalogModel(
        "stockmark/gpt-neox-japanese-1.4b", NEOX,
        Geometry(24, 2048, 16, 8192, 50000, 2048, 1.0, parallel=False), style="japanese",
    )  # fmt: skip
    for name, shape in (
        ("llm-jp/llm-jp-1.3b-v1.0", (24, 2048, 16)), ("llm-jp/llm-jp-13b-v1.0", (40, 5120, 40)),
    ):  # fmt: skip
        yield CatalogModel(
            name, GPT2, sized(*shape, 50688, 2048), style="japanese",
            draft="llm-jp/llm-jp-1.3b-v1.0" if "13b" in name else None,
        )  # fmt: skip


def _further_languages() -> Iterator[CatalogModel]:
    russian: Sizes = {
        "small": (12, 768, 12), "medium": (24, 1024, 16), "large": (24, 1536, 16),
    }  # fmt: skip
    for size, sizes in russian.items():
        n_vocab = 50264 if size == "small" else 50257
        yield CatalogModel(
            f"ai-forever/rugpt3{size}_based_on_gpt2", GPT2, sized(*sizes, n_vocab, 2048),
            weights="bin", dtype="F32",
            draft="ai-forever/rugpt3small_based_on_gpt2" if size == "large" else None,
        )  # fmt: skip
    yield CatalogModel(
        "ai-forever/mGPT", GPT2, sized(24, 2048, 16, 100000, 2048), weights="bin", dtype="F32"
    )
    nordic: Sizes = {
        "126m": (12, 768, 12), "356m": (24, 1024, 16), "1.3b": (24, 2048, 32),
        "6.7b-v2": (32, 4096, 32),
    }  # fmt: skip
    for size, sizes in nordic.items():
        yield CatalogModel(
            f"AI-Sweden-Models/gpt-sw3-{size}", GPT2, sized(*sizes, 64000, 2048), dtype="F32",
            draft="AI-Sweden-Models/gpt-sw3-126m" if sizes[1] > 1024 else None,
        )  # fmt: skip


def _large_blooms() -> Iterator[CatalogModel]:
    for name, style in (("bloom", "dialogue"), ("bloomz", "bloomz")):
        yield CatalogModel(
            f"bigscience/{name}", BLOOM, sized(70, 14336, 112, 250880, 2048), dtype="BF16",
            draft="bigscience/bloom-560m", style=style,
        )  # fmt: skip
    yield CatalogModel(
        "bigscience/bloomz-7b1-mt", BLOOM, sized(30, 4096, 32, 250880, 2048),
        draft="bigscience/bloom-560m", style="bloomz",
    )  # fmt: skip


def _fine_tunes() -> Iterator[CatalogModel]:
    for name in ("KoboldAI/GPT-J-6B-Janeway", "KoboldAI/GPT-J-6B-Skein", "hakurei/lit-6B"):
        yield CatalogModel(
            name, GPTJ, sized(28, 4096, 16, 50400, 2048), weights="bin", draft=_GPT2_DRAFT,
            style="plain",
        )  # fmt: skip
    yield CatalogModel(
        "PygmalionAI/pygmalion-1.3b", NEOX, sized(24, 2048, 16, 50304, 2048), weights="bin",
        draft=_NEOX_DRAFT, style="pygmalion",
    )  # fmt: skip
    for name in ("stanford-crfm/alias-gpt2-small-x21", "stanford-crfm/battlestar-gpt2-small-x49"):
        yield CatalogModel(
            name, GPT2,
            Geometry(
                12, 768, 12, 3072, 50257, 1024,
                extra=(("scale_attn_by_inverse_layer_idx", True),),
            ),
            weights="bin", dtype="F32",
        )  # fmt: skip


#: The neighbours' models.
NEIGHBOUR_MODELS: tuple[CatalogModel, ...] = (
    *_codegens(),
    *_starcoders(),
    *_opts(),
    *_galacticas(),
    *_gpt_neos(),
    *_xglms(),
    *_mpts(),
    *_korean(),
    *_japanese(),
    *_further_languages(),
    *_large_blooms(),
    *_fine_tunes(),
)
