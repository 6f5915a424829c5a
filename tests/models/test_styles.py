"""Prompt styles: every name that the catalog uses is there, every form has its place for a text."""

from __future__ import annotations

import pytest

from infer_os.models.catalog import CATALOG, find_model
from infer_os.models.styles import STYLES, PromptStyle
from infer_os.runtime.interface import EngineInfo


def test_every_style_of_the_catalog_exists() -> None:
    assert {model.style for model in CATALOG} <= set(STYLES)


def test_every_style_is_used_or_for_base_models() -> None:
    assert set(STYLES) == {model.style for model in CATALOG} | {"plain"}


def test_the_default_of_a_model_exists() -> None:
    assert EngineInfo.__dataclass_fields__["style"].default in STYLES


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_the_forms_have_one_place_for_a_text(style: PromptStyle) -> None:
    assert STYLES[style.name] is style
    assert style.user.count("{text}") == style.system.count("{text}") == 1
    for fixed in (style.opening, style.assistant, style.end, *style.stops):
        assert "{" not in fixed
    assert all(style.stops)
    written = style.system + style.user + style.assistant + style.end
    assert all(marker in written + "".join(style.stops) for marker in style.markers)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_model_that_speaks_for_the_person_is_stopped(style: PromptStyle) -> None:
    """What begins a message ends a reply, by a stop string or as a token that ends a text."""
    begins = style.user.partition("{text}")[0].strip()
    if begins:
        assert any(begins.startswith(stop.strip().removeprefix("<NL>")) for stop in style.stops)


@pytest.mark.parametrize(
    ("model", "style"),
    [
        ("microsoft/DialoGPT-large", "dialogpt"), ("databricks/dolly-v2-3b", "instruction"),
        ("OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5", "open-assistant"),
        ("togethercomputer/RedPajama-INCITE-Chat-3B-v1", "human-bot"),
        ("togethercomputer/GPT-NeoXT-Chat-Base-20B", "human-bot"),
        ("stabilityai/stablelm-tuned-alpha-7b", "stablelm"), ("bigscience/bloomz-7b1", "bloomz"),
        ("rinna/japanese-gpt-neox-3.6b-instruction-ppo", "rinna"),
        ("rinna/japanese-gpt-neox-3.6b", "japanese"), ("EleutherAI/gpt-j-6B", "dialogue"),
        ("HuggingFaceH4/starchat-beta", "starchat"), ("mosaicml/mpt-7b-instruct", "instruction"),
    ],
)  # fmt: skip
def test_whose_style_is_whose(model: str, style: str) -> None:
    found = find_model(model)
    assert found is not None
    assert found.style == style
