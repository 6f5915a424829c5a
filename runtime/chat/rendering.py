"""Chat templates are rendered in a separate process, whose time and memory are limited.

In: a template, its variables and conversations. Out: for each the text that the template writes, as
runs that say who wrote them: the template itself, a message, or unknown. jinja2's sandbox keeps a
template from files and programs, but not from looping forever or using any amount of memory, even
during compilation.

One process serves all of a program's templates. It is started for the first one, waits at no cost
and ends with the program.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import TemplateFailure
from .frame import Message

#: Whose text a run is: see :mod:`.sandbox.marked`.
UNKNOWN, OWN, FIRST_MESSAGE = 0, 1, 2

#: Processor time of a request, and wall-clock time until the caller gives up, in seconds.
SECONDS, PATIENCE = 3.0, 6.0
#: Address space of the process, bytes.
MEMORY = 512 << 20
_LARGEST_TEMPLATE = 1 << 20
_LARGEST_ANSWER = 256 << 20

_START = (
    "import sys; sys.path += sys.argv[3:]; from sandbox.main import serve; "
    "serve(int(sys.argv[1]), float(sys.argv[2]))"
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template should write; ``asks``: a reply will follow."""

    messages: tuple[Message, ...]
    asks: bool


@dataclass(frozen=True, slots=True)
class Rendering:
    """A template's runs of :data:`UNKNOWN`, :data:`OWN` or :data:`FIRST_MESSAGE` + i, texts."""

    runs: tuple[tuple[int, str], ...]

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(text for _, text in self.runs)

    def holds(self, message: int) -> bool:
        """Whether it contains text of a message, given by its number."""
        return any(mark == FIRST_MESSAGE + message for mark, _ in self.runs)


def render(
    template: str,
    variables: dict[str, str],
    conversations: Sequence[Conversation],
    until: float | None = None,
) -> list[Rendering | TemplateFailure]:
    """Render conversations: for each what the template writes, or why it fails.

    ``until`` is the ``time.monotonic()`` at which to give up, by default :data:`PATIENCE` from
    now.

    Raises:
        TemplateFailure: it takes too long, too much memory, or ends the process.
    """
    if len(template) > _LARGEST_TEMPLATE:
        raise TemplateFailure("the chat template is larger than 1 MB")
    request = {
        "template": template,
        "variables": variables,
        "conversations": [
            ([(m.role, m.content) for m in c.messages], c.asks) for c in conversations
        ],
    }
    with _LOCK:
        line = json.dumps(request).encode() + b"\n"
        answers = _exchange(line, time.monotonic() + PATIENCE if until is None else until)
    return [
        TemplateFailure(f"the chat template {answer}")
        if isinstance(answer, str)
        else Rendering(tuple((mark, text) for mark, text in answer))
        for answer in answers
    ]


_LOCK = threading.Lock()
#: The process, if it runs.
_RUNNING: list[subprocess.Popen[bytes]] = []


def _exchange(line: bytes, deadline: float) -> list[str | list[tuple[int, str]]]:
    """The process's answer to a request; one that fails is ended, and the next call starts one."""
    if _RUNNING and _RUNNING[0].poll() is not None:
        _end()
    if not _RUNNING:
        _RUNNING.append(_start())
    try:
        answer = json.loads(_ask(_RUNNING[0], line, deadline))
    except BaseException:
        # on Ctrl-C too: an unread answer would be taken for the next one
        _end()
        raise
    if answer == "memory":
        _end()
        raise TemplateFailure(
            f"the chat template fails: it needs more than {MEMORY >> 20} MB of memory"
        )
    return list(answer)


def _start() -> subprocess.Popen[bytes]:
    """Start the process, with access to jinja2 and nothing else."""
    folders = [str(Path(__file__).resolve().parent), *_library_folders()]
    command = [sys.executable, "-I", "-S", "-c", _START, str(MEMORY), str(SECONDS), *folders]
    try:
        # a session of its own: Ctrl-C at the terminal is not meant for it
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        raise TemplateFailure(
            f"the chat template cannot be rendered: {sys.executable}: {error.strerror}"
        ) from error


@functools.cache
def _library_folders() -> tuple[str, ...]:
    folders: dict[str, None] = {}
    for name in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            folders[str(Path(spec.origin).resolve().parent.parent)] = None
    return tuple(folders)


def _ask(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> bytes:
    """The line that answers a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    source, sink = process.stdout.fileno(), process.stdin.fileno()
    os.set_blocking(sink, False)
    poll = select.poll()
    poll.register(source, select.POLLIN)
    poll.register(sink, select.POLLOUT)
    answer, unsent = bytearray(), memoryview(line)
    while not answer.endswith(b"\n"):
        ready = [file for file, _ in poll.poll(max(deadline - time.monotonic(), 0) * 1000)]
        if not ready:
            raise TemplateFailure(f"the chat template fails: it takes longer than {PATIENCE:g} s")
        if sink in ready:
            # if nobody reads, the other pipe has also ended
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                unsent = unsent[os.write(sink, unsent) :]
            if not unsent:
                poll.unregister(sink)
        if source in ready:
            data = os.read(source, 1 << 20)
            if not data:
                raise _ended(process)
            answer += data
        if len(answer) > _LARGEST_ANSWER:
            raise TemplateFailure("the chat template fails: it writes too much")
    return bytes(answer)


def _ended(process: subprocess.Popen[bytes]) -> TemplateFailure:
    """Why a process closed its pipe."""
    code = process.wait()
    if -code in (signal.SIGPROF, signal.SIGALRM):
        return TemplateFailure(
            f"the chat template fails: it takes longer than {SECONDS:g} s to render"
        )
    return TemplateFailure(
        f"the chat template fails: it ends the process that renders it (code {code})"
    )


def _end() -> None:
    """End the process at once."""
    while _RUNNING:
        process = _RUNNING.pop()
        process.kill()
        _close(process)
        process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _forget() -> None:
    """After a fork, the process belongs to the parent, as does a lock that a thread held."""
    global _LOCK
    _LOCK = threading.Lock()
    while _RUNNING:
        process = _RUNNING.pop()
        _close(process)
        process.returncode = 0


atexit.register(_end)
os.register_at_fork(after_in_child=_forget)
