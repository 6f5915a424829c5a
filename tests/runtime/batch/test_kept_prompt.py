"""``batch --prompt-cache``: what prompts begin with in a file, taken again, never taken wrongly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLED, Converter
from in_process import Cli, runner

from infer_os.native.batch_context import BatchContext, BatchContextParams, Rows
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import StateError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.kv_state import KvFormat, cut_state, join_states, kv_geometry, of_one_stream
from infer_os.native.model import LlamaModel
from infer_os.runtime.batch.batch_engine import BatchEngine
from infer_os.runtime.batch.records import Record
from infer_os.runtime.batch.settings import BatchSettings
from infer_os.runtime.chat.prompt_file import load_prompt, save_prompt
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.generate import complete
from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings

GREEDY = SamplingSettings(temperature=0)
PREFIX = "It is a truth universally acknowledged, that a single man in possession of a good fortune"
SETTINGS = EngineSettings(context=128, threads=2)


@pytest.fixture(scope="module")
def model(converted: Converter) -> Path:
    return converted(next(f for f in BUNDLED if f.name == "austen-6m"), "q8_0")


def records(*ends: str, prefix: str = PREFIX) -> list[Record]:
    return [Record(i, i + 1, GREEDY, StopSettings(10), prefix + end) for i, end in enumerate(ends)]


ENDS = (" must be", " is", ", she said", " was not", " and a house", " must have")


def answers(
    model: Path,
    file: Path | None,
    items: list[Record],
    settings: EngineSettings = SETTINGS,
    n_slots: int = 3,
) -> tuple[dict[object, tuple[int, ...]], int, tuple[str, ...]]:
    """Tokens by id, tokens that were not computed, and notes."""
    with BatchEngine(model, settings, BatchSettings(n_slots)) as engine:
        if file is not None:
            engine.keep_prompt(file, file.parent)
        got = {result.id: result.tokens for result in engine.run(items)}
        return got, engine.statistics.counts.shared, engine.take_notes()


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("n_slots", [1, 3, 8])
def test_texts_are_the_same_and_less_is_computed(
    model: Path, tmp_path: Path, n_slots: int, kv: str
) -> None:
    file, settings = tmp_path / "p", replace(SETTINGS, kv=kv)
    expected, shared, notes = answers(model, None, records(*ENDS), settings, n_slots)
    first = answers(model, file, records(*ENDS), settings, n_slots)
    assert first == (expected, shared, notes)
    kept = file.read_bytes()
    tokens, saved, notes = answers(model, file, records(*ENDS), settings, n_slots)
    assert (tokens, notes) == (expected, ())
    with LlamaEngine(model, SETTINGS) as engine:
        n_prefix = len(engine.vocab.tokenize(PREFIX))
    assert saved >= n_prefix * len(ENDS) > shared
    assert file.read_bytes() == kept  # it had all of it


def test_generate_takes_what_a_batch_has_kept_and_the_other_way_round(
    model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "p"
    expected, _, _ = answers(model, file, records(*ENDS))
    with LlamaEngine(model, SETTINGS) as engine:
        prompt = engine.vocab.tokenize(PREFIX + ENDS[0])
        assert load_prompt(file, engine, prompt, tmp_path) == ""
        assert engine.tokens == engine.vocab.tokenize(PREFIX)
        assert complete(engine, prompt, GREEDY, StopSettings(10)).tokens == expected[0]
        save_prompt(file, engine, prompt, tmp_path)
    tokens, shared, notes = answers(model, file, records(ENDS[0]))
    assert (tokens[0], shared, notes) == (expected[0], len(prompt) - 1, ())
    # a cache of other types: the rows are encoded again
    assert answers(model, file, records(ENDS[0]), replace(SETTINGS, kv="q8_0"))[1:] == (
        len(prompt) - 1, (),
    )  # fmt: skip


def test_other_prompts_replace_it(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "p"
    answers(model, file, records(*ENDS))
    before = file.read_bytes()
    others = records(*ENDS, prefix="Elizabeth had been at a good deal of pains")
    expected, _, _ = answers(model, None, others)
    tokens, _, notes = answers(model, file, others)
    assert (tokens, notes) == (expected, ())
    assert file.read_bytes() != before
    # prompts with nothing in common leave it
    before = file.read_bytes()
    answers(model, file, records("It", "Elizabeth", "She", prefix=""))
    assert file.read_bytes() == before


def test_a_file_that_is_of_no_use(model: Path, converted: Converter, tmp_path: Path) -> None:
    file = tmp_path / "p"
    expected, _, _ = answers(model, file, records(*ENDS))
    good = file.read_bytes()
    file.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
    tokens, _, notes = answers(model, file, records(*ENDS))
    assert tokens == expected
    assert len(notes) == 1
    assert "changed or truncated" in notes[0] and "is computed" in notes[0]
    # it is written again
    assert answers(model, file, records(*ENDS))[::2] == (expected, ())
    tokens, _, notes = answers(converted(), file, records("a", "b", prefix="x" * 9))
    assert "saved with another model" in notes[0] and "\n" not in notes[0]
    # too long for the sequences of this run
    answers(model, file, records(*ENDS))
    _, _, notes = answers(model, file, records("a"), replace(SETTINGS, context=24))
    assert "room for 16" in notes[0]


def test_a_record_that_cannot_be_answered_is_no_prompt(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "p"
    answers(model, file, [*records(*ENDS), replace(records("x" * 4000)[0], id="long")])
    assert file.exists()


# ---- the states


@pytest.mark.parametrize("types", [("f16", "f16"), ("q8_0", "q4_0")])
def test_a_sequence_is_what_a_context_of_its_own_would_save(
    converted: Converter, types: tuple[str, str]
) -> None:
    path = converted()
    geometry = kv_geometry(read_gguf_header(path))
    tokens = np.arange(3, 43, dtype=np.int32)
    type_k, type_v = types
    with LlamaModel(path) as model:
        batch = BatchContextParams(64, 3, 1, type_k=type_k, type_v=type_v)
        alone = ContextParams(64, 1, type_k=type_k, type_v=type_v, window=True)
        with BatchContext(model, batch) as many, Context(model, alone) as one:
            for sequence in range(3):
                many.decode(Rows(
                    tokens + sequence, np.arange(40, dtype=np.int32),
                    np.full(40, sequence, np.int32), np.zeros(40, np.int8),
                ))  # fmt: skip
            form = KvFormat(type_k, type_v, many.rotates)
            assert one.rotates == many.rotates
            for sequence in range(3):
                state = many.export_sequence(sequence)
                pieces = list(cut_state(state, geometry, form, 40, 16))
                assert len(pieces) == 3
                for piece in pieces:
                    one.import_rows(piece)
                got = one.export_rows(0, 40)
                # but for the numbers of sequences in it
                same = join_states([got], geometry, form, 40)
                assert np.array_equal(join_states(pieces, geometry, form, 40), same)
                one.trim(0)
                many.import_sequence(2 - sequence, join_states(pieces, geometry, form, 40, 3))
                assert np.array_equal(
                    join_states([many.export_sequence(2 - sequence)], geometry, form, 40), same
                )


def test_states_that_do_not_fit(converted: Converter) -> None:
    path = converted()
    geometry, form = kv_geometry(read_gguf_header(path)), KvFormat("f16", "f16")
    with LlamaModel(path) as model, BatchContext(model, BatchContextParams(64, 2, 1)) as context:
        positions = np.arange(20, dtype=np.int32)
        context.decode(Rows(positions + 5, positions, positions * 0 + 1, np.zeros(20, np.int8)))
        state = context.export_sequence(1)
        pieces = list(cut_state(state, geometry, form, 20, 8))
        for wrong in (pieces[::-1], pieces[:2], [*pieces, pieces[0]], [pieces[0][:-4]], []):
            with pytest.raises(StateError):
                join_states(wrong, geometry, form, 20)
        with pytest.raises(StateError, match="streams"):
            of_one_stream(state.copy(), 2, 1)
        both = join_states(pieces, geometry, form, 20, 2)
        with pytest.raises(StateError, match="cells of other sequences"):
            of_one_stream(both.copy(), 2, 1)
        with pytest.raises(StateError, match="whole header"):
            of_one_stream(both[:12].copy(), 2, 1)
        with pytest.raises(StateError, match="refuses"):
            context.import_sequence(0, pieces[0])
        assert np.array_equal(of_one_stream(both, 2, 0), state * 0 + both[: len(state)])


# ---- the command


@pytest.fixture
def infer_os(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Cli:
    monkeypatch.setenv("INFER_OS_CACHE", str(tmp_path / "cache"))
    return runner(monkeypatch, capfdbinary)


def test_the_command(infer_os: Cli, model: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": i, "prompt": PREFIX + end}) for i, end in enumerate(ENDS)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    words = ["batch", model, "-i", tmp_path / "in.jsonl", "-n", "8", "--temperature", "0", "--json",
             "--parallel", "2", "--prompt-cache", tmp_path / "p", "-o"]  # fmt: skip
    found = []
    for name in ("one.jsonl", "two.jsonl"):
        told = infer_os(*words, tmp_path / name)
        assert told.code == 0, told.err
        found.append(json.loads(told.err)["rows"]["prefilled"])
    assert found[1] < found[0] // 2
    one, two = (
        sorted((tmp_path / name).read_text().splitlines()) for name in ("one.jsonl", "two.jsonl")
    )
    assert one == two
    (tmp_path / "p").write_bytes(b"letter")
    told = infer_os(*words, tmp_path / "three.jsonl")
    assert "not a prompt cache of infer-os" in told.user_error
    assert not (tmp_path / "three.jsonl").exists()
    (tmp_path / "p").unlink()
    plain = [word for word in words if word not in ("--parallel", "2")]
    for option in (["--beams", "2"], ["--ray", "local"]):
        told = infer_os(*plain, tmp_path / "three.jsonl", *option)
        assert f"--prompt-cache and {option[0]}" in told.user_error
