"""What the prompts of a batch begin with, in a file: the next batch starts behind it.

The file is that of ``generate --prompt-cache`` (:mod:`..chat.prompt_file`): either takes what the
other has kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infer_os.native.batch_context import BatchContext
from infer_os.native.errors import StateError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.kv_state import (
    KvFormat,
    State,
    cut_state,
    join_states,
    kv_geometry,
    reencode_state,
)

from ..chat.prompt_file import keep_rows, take_rows
from ..errors import PromptError
from ..interface import shared_prefix
from ..kv.staged import SavedRows
from ..plan.step_rows import LEAST_ROWS
from .running import Running

#: Tokens whose rows are together in the file.
_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class SlotRows:
    """A slot of a batch's context as the owner of one sequence, for a file of its rows.

    ``adapter`` says what they were computed with, see :meth:`Engine.adapter_identity`.
    """

    path: Path
    context: BatchContext
    slot: int
    adapter: str = ""

    @property
    def form(self) -> KvFormat:
        """How the context stores rows."""
        params = self.context.params
        return KvFormat(params.type_k, params.type_v, self.context.rotates)

    def export_rows(self, n_tokens: int) -> tuple[KvFormat, Iterator[SavedRows]]:
        """The rows of the slot, which holds exactly so many tokens.

        Raises:
            StateError: llama.cpp saves nothing, or an unexpected layout.
        """
        geometry = kv_geometry(read_gguf_header(self.path))
        state = self.context.export_sequence(self.slot)
        pieces = cut_state(state, geometry, self.form, n_tokens, _TOGETHER)
        return self.form, (
            SavedRows(i * _TOGETHER, min(_TOGETHER, n_tokens - i * _TOGETHER), piece)
            for i, piece in enumerate(pieces)
        )

    def restore(self, tokens: Sequence[int], form: KvFormat, batches: Iterator[SavedRows]) -> None:
        """Let the slot hold rows that a cache of that form saved.

        Raises:
            PromptError: they do not fit here; the slot holds nothing.
        """
        params = self.context.params
        most = params.n_ctx - LEAST_ROWS
        if len(tokens) > most:
            raise PromptError(f"{len(tokens)} tokens are held, and a sequence has room for {most}")
        geometry = kv_geometry(read_gguf_header(self.path))

        def converted(rows: SavedRows) -> State:
            if form == self.form:
                return rows.state
            return reencode_state(
                rows.state, geometry, form, self.form,
                first=rows.first, n_cells=rows.n_cells, n_threads=params.n_threads,
            )  # fmt: skip

        try:
            joined = join_states(
                map(converted, batches), geometry, self.form, len(tokens), params.n_seq
            )
            self.context.import_sequence(self.slot, joined)
        except StateError as error:
            raise PromptError(str(error)) from error


@dataclass(slots=True)
class KeptPrompt:
    """The file of ``--prompt-cache`` for a batch; ``notes`` say what did not work.

    It is that of records of one ``adapter``, named as in :class:`SlotRows`.
    """

    file: Path
    cache_folder: Path
    model: Path
    adapter: str = ""
    notes: list[str] = field(default_factory=list)
    _found: list[int] = field(default_factory=list)

    def take(self, running: Running, context: BatchContext) -> None:
        """Let the first slot hold what the file has; records that begin so start behind it."""
        tokens, problem = take_rows(
            self.file, SlotRows(self.model, context, 0, self.adapter), self.cache_folder
        )
        if problem:
            self.notes.append(f"{problem}; what prompts begin with is computed")
        self._found = tokens
        running.hold(0, tokens)

    def keep(self, running: Running, context: BatchContext) -> None:
        """Keep what all prompts began with, unless the file has it: after the last record."""
        common = running.common or []
        slot, n_held = running.slot_with(common)
        if not n_held or n_held <= shared_prefix(self._found, common):
            return
        running.cut(slot, n_held)
        rows = SlotRows(self.model, context, slot, self.adapter)
        if problem := keep_rows(self.file, rows, common[:n_held], self.cache_folder):
            self.notes.append(problem)
