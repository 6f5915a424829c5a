"""The catalog: geometries that give the published sizes, names that find one model each."""

from __future__ import annotations

from typing import Any

import pytest

from infer_os.models.architectures import describe
from infer_os.models.catalog import CATALOG, CatalogModel, find_model, near_names, style_for
from infer_os.models.styles import STYLES

MISSION = [
    "EleutherAI/gpt-neox-20b", "EleutherAI/gpt-j-6B", "bigscience/bloom-7b1",
    "microsoft/DialoGPT-large", "gpt2-large", "gpt2-medium", "distilgpt2",
]  # fmt: skip

# as published, or for neighbours as computed from their published shapes
PUBLISHED = {
    "gpt-j-6B": 6_050_882_784, "gpt-neox-20b": 20_554_567_680, "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304, "bloom-1b7": 1_722_408_960, "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064, "gpt2": 124_439_808, "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200, "distilgpt2": 81_912_576,
    "DialoGPT-large": 774_030_080, "pythia-70m": 70_426_624, "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632, "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320,
    "opt-125m": 125_239_296, "opt-1.3b": 1_315_758_080, "opt-6.7b": 6_658_473_984,
    "gpt-neo-125m": 125_198_592, "gpt-neo-1.3B": 1_315_575_808, "gpt-neo-2.7B": 2_651_307_520,
    "mpt-7b": 6_649_286_656, "mpt-30b": 29_957_200_896, "starcoder": 15_517_456_384,
    "gpt_bigcode-santacoder": 1_124_886_528, "tiny_starcoder_py": 164_144_128,
    "xglm-564M": 564_463_616, "codegen-350M-mono": 356_712_448,
    "polyglot-ko-1.3b": 1_331_810_304, "polyglot-ko-3.8b": 3_809_974_272,
    "polyglot-ko-5.8b": 5_885_059_072, "bigscience/bloom": 176_247_271_424,
}  # fmt: skip


def model_named(name: str) -> CatalogModel:
    found = find_model(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_geometry_gives_the_published_size(name: str) -> None:
    assert describe(model_named(name).config).n_params == PUBLISHED[name]


@pytest.mark.parametrize("model", CATALOG, ids=lambda model: model.id)
def test_every_config_is_described(model: CatalogModel) -> None:
    network = describe(model.config)
    g = model.geometry
    assert network.architecture == model.architecture
    assert (network.n_layer, network.n_embd, network.n_head) == (g.n_layer, g.n_embd, g.n_head)
    assert (network.vocab_rows, network.n_ctx) == (g.n_vocab, g.n_ctx)
    assert network.metadata["feed_forward_length"] == g.n_ff


@pytest.mark.parametrize("name", MISSION)
def test_the_missions_models_are_known(name: str) -> None:
    assert name in {model_named(name).id, *model_named(name).aliases}
    assert model_named(name.rpartition("/")[2].upper()) is model_named(name)


def test_what_the_hub_needs_to_be_asked() -> None:
    assert model_named("gpt-j-6B").revision == "float16"
    assert {m.id for m in CATALOG if m.revision != "main"} == {
        "EleutherAI/gpt-j-6B", "kakaobrain/kogpt",
    }  # fmt: skip
    assert model_named("gpt2-large").id == "openai-community/gpt2-large"
    assert model_named("distilgpt2").id == "distilbert/distilgpt2"
    assert model_named("DialoGPT-large").weights == "bin"
    assert find_model("gpt-5") is None


def test_rotary_geometry() -> None:
    assert describe(model_named("gpt-j-6B").config).metadata["rope.dimension_count"] == 64
    assert describe(model_named("gpt-neox-20b").config).metadata["rope.dimension_count"] == 24


@pytest.mark.parametrize("model", [m for m in CATALOG if m.draft], ids=lambda model: model.id)
def test_a_draft_is_small_and_in_the_catalog(model: CatalogModel) -> None:
    draft = model_named(model.draft or "")
    assert draft.id == model.draft
    assert 4 * describe(draft.config).n_params < describe(model.config).n_params
    # padding differs, the tokens do not
    assert abs(draft.geometry.n_vocab - model.geometry.n_vocab) < 0.02 * model.geometry.n_vocab


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("gpt2-lage", "gpt2-large"), ("EleutherAI/gpt-neo-20b", "EleutherAI/gpt-neox-20b"),
        ("DIALOGPT-LARG", "DialoGPT-large"), ("my-modell", "mine/my-model"),
        ("a-model", "/home/me/checkpoints/a-model"),
    ],
)  # fmt: skip
def test_near_names(text: str, near: str) -> None:
    found = near_names(text, ["mine/my-model", "/home/me/checkpoints/a-model"])
    assert found.startswith("; did you mean ")
    assert near in found


def test_nothing_is_near_nonsense() -> None:
    assert near_names("qqqqqqqq") == ""


@pytest.mark.parametrize(
    ("metadata", "style"),
    [
        ({"inferos.source.repository": "microsoft/DialoGPT-large"}, "dialogpt"),
        ({"general.source.huggingface.repository": "microsoft/DialoGPT-small"}, "dialogpt"),
        # a copy under another owner; a folder that was called so
        ({"inferos.source.repository": "me/DialoGPT-large"}, "dialogpt"),
        ({"general.name": "dialogpt-medium"}, "dialogpt"),
        # where it truly comes from counts, not what it is called
        (
            {"inferos.source.repository": "gpt2", "general.name": "DialoGPT-large"}, "dialogue",
        ),
        ({"general.name": "something"}, "dialogue"),
        ({"general.name": 7}, "dialogue"),
        ({}, "dialogue"),
    ],
)  # fmt: skip
def test_the_style_follows_from_the_file(
    monkeypatch: pytest.MonkeyPatch, metadata: dict[str, Any], style: str
) -> None:
    monkeypatch.setitem(STYLES, "dialogpt", STYLES["plain"])
    assert style_for(metadata) == style


def test_a_style_that_is_not_there_is_a_dialogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(STYLES, "dialogpt", raising=False)
    assert style_for({"general.name": "DialoGPT-large"}) == "dialogue"
