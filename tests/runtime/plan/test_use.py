"""One plan of a use, whoever asks for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import Converter

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.bundled import DRAFT, TARGET
from infer_os.native.constraint import constraint_bytes, count_places
from infer_os.native.gguf_file import read_gguf_header
from infer_os.runtime.batch.drafts import read_draft
from infer_os.runtime.batch.parallel import plan_batch
from infer_os.runtime.plan.memory_plan import Budget, Sizes
from infer_os.runtime.plan.shapes import header_shape
from infer_os.runtime.plan.use import Use, plan_bench, plan_eval, plan_use
from infer_os.runtime.prepare import plan_file
from infer_os.runtime.settings import EngineSettings, Extra
from infer_os.store.planning import PlanRequest, make_answer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    files = folder / "model.gguf", folder / "draft.gguf"
    for source, file in zip((TARGET, DRAFT), files, strict=True):
        convert(ConvertSettings(source, file, "q8_0"))
    return files


@pytest.mark.parametrize("parallel", [1, 4, 5, 8, 9, 32])
@pytest.mark.parametrize("guessing", [False, True])
def test_a_plan_says_what_a_batch_takes(
    pair: tuple[Path, Path], parallel: int, guessing: bool
) -> None:
    model, draft = pair
    settings = EngineSettings(context=512, threads=1, draft=str(draft) if guessing else "none")
    batch, _ = plan_batch(read_gguf_header(model), settings, parallel, read_draft(model, settings))
    request = PlanRequest(str(model), settings, "mmap", None, settings.draft, parallel)
    plan = make_answer(request, rates=False).plan
    assert plan.total == batch.total
    assert plan.sizes == batch.sizes
    assert (plan.draft > 0) == guessing
    assert plan.sizes.n_seq == {9: 12}.get(parallel, parallel)


def test_each_guessing_sequence_opens_the_draft(pair: tuple[Path, Path]) -> None:
    _, draft = pair
    settings = EngineSettings(context=512, draft=str(draft))
    shape, guesser = (header_shape(read_gguf_header(path)) for path in pair)
    drafts = [
        plan_use(shape, Use(settings, n, guesser), Budget(1 << 40))[0].draft
        for n in (0, 1, 2, 4, 8)
    ]
    assert drafts == [drafts[0] * n for n in (1, 1, 2, 4, 4)]


def test_a_plan_says_what_a_load_takes(pair: tuple[Path, Path]) -> None:
    model, _ = pair
    for settings in (
        EngineSettings(), EngineSettings(kv="q8_0"), EngineSettings(draft="lookup"),
        EngineSettings(extras=frozenset((Extra.SESSION, Extra.TERMINAL))),
        EngineSettings(kv="f16:512,q8_0:1024", context=1024),
    ):  # fmt: skip
        loaded, _ = plan_file(read_gguf_header(model), settings)
        request = PlanRequest(str(model), settings, "mmap", None, settings.draft)
        assert make_answer(request, rates=False).plan.total == loaded.total


def test_what_else_a_process_does_is_in_its_plan(pair: tuple[Path, Path]) -> None:
    shape = replace(header_shape(read_gguf_header(pair[0])), has_template=True)
    plain, _ = plan_use(shape, Use(EngineSettings()), Budget(1 << 40))
    for extra in Extra:
        settings = EngineSettings(extras=frozenset((extra,)))
        plan, _ = plan_use(shape, Use(settings), Budget(1 << 40))
        assert plan.total > plain.total, extra
        if extra is not Extra.REPORT:
            assert [name for name, _ in plan.beside.parts] == [extra.value]


def test_a_template_is_rendered_where_there_is_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    header = read_gguf_header(pair[0])
    settings = EngineSettings(extras=frozenset((Extra.TEMPLATE,)))
    plain, _ = plan_file(header, EngineSettings())
    assert plan_file(header, settings)[0].total == plain.total
    header.metadata["tokenizer.chat_template"] = "{{ messages[0].content }}"
    assert header_shape(header).has_template
    assert plan_file(header, settings)[0].total >= plain.total + 21_000_000


def test_a_constraint_takes_memory_by_the_tokens(pair: tuple[Path, Path]) -> None:
    assert count_places(["a", "ab", "abc", "b", "ba", "abd"]) == 6
    assert count_places([]) == 0
    shape = header_shape(read_gguf_header(pair[0]), constrained=True)
    assert shape.n_vocab < shape.n_places < 10 * shape.n_vocab
    assert constraint_bytes(100, 300) < constraint_bytes(100, 400) < constraint_bytes(100)
    settings = EngineSettings(extras=frozenset((Extra.CONSTRAINT,)))
    plan, _ = plan_file(read_gguf_header(pair[0]), settings)
    assert plan.beside.parts == (("grammar", constraint_bytes(shape.n_vocab, shape.n_places)),)


@pytest.mark.parametrize(("window", "rows"), [(256, 128), (1024, 512), (600, 300), (900, 450)])
def test_an_evaluation_holds_the_logits_of_second_halves(
    pair: tuple[Path, Path], window: int, rows: int
) -> None:
    shape = header_shape(read_gguf_header(pair[0]))
    settings, budget = EngineSettings(window, kv="f16"), Budget(1 << 40)
    alone = plan_eval(shape, None, settings, budget)
    assert alone.sizes.n_rows == rows
    other = header_shape(read_gguf_header(pair[1]))
    assert plan_eval(shape, other, settings, budget).total > alone.total + other.options[0].n_bytes
    staged = plan_eval(shape, None, replace(settings, kv=f"f16:{window // 2},q8_0"), budget)
    assert dict(staged.beside.parts)["rows of logits"] > window * shape.n_vocab * 4


def test_a_benchmark_holds_all_its_caches(pair: tuple[Path, Path]) -> None:
    shape = header_shape(read_gguf_header(pair[0]))
    use, budget = Use(EngineSettings(context=1024)), Budget(1 << 40)
    one = plan_bench(shape, use, (), [], budget)
    assert one.total == plan_use(shape, use, budget)[0].total
    two = plan_bench(shape, use, ("f16", "q8_0"), [], budget)
    assert two.total > one.total + two.weights.n_bytes + two.kv // 2
    many = plan_bench(shape, use, (), [Sizes(40, 256, 256, 256)], budget)
    assert many.total > one.total + 200 * 1024 * shape.n_embd


def test_a_conversion_gives_pages_back(
    converted: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infer_os.convert import pipeline, tensors

    forgotten: list[Path] = []
    whole = tensors.MappedFile.forget

    def forget(self: tensors.MappedFile) -> None:
        forgotten.append(self.path)
        whole(self)

    monkeypatch.setattr(tensors.MappedFile, "forget", forget)
    monkeypatch.setattr(pipeline, "_HELD_BYTES", 1 << 20)
    convert(ConvertSettings(TARGET, tmp_path / "a.gguf", "q8_0"))
    assert len(forgotten) > 3
    monkeypatch.setattr(pipeline, "_HELD_BYTES", 1 << 40)
    convert(ConvertSettings(TARGET, tmp_path / "b.gguf", "q8_0"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
