"""The loop of the process: one request per line, one answer per line, both JSON.

A request holds a template, its variables and conversations; the answer has for each what the
template wrote, as runs of text with one writer, or why it failed. Limits that the template cannot
lift end whatever takes too long or too much.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
from typing import Any

from .environment import compiled, rendered
from .marked import marks_of

#: Most characters that a conversation may have.
_LONGEST_TEXT = 1 << 22
_LONGEST_REASON = 200


def serve(memory: int, seconds: float) -> None:
    """Answer until the pipe is closed.

    Args:
        memory: the largest address space, bytes.
        seconds: processor time for a request; the process ends when it is spent.
    """
    _limit(memory)
    with open(0, "rb") as source, open(1, "wb") as sink:
        for line in source:
            # without a handler, these end the process whatever it is doing
            signal.setitimer(signal.ITIMER_PROF, seconds)
            signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
            enough = True
            try:
                answer = json.dumps(_answers(json.loads(line)))
            except MemoryError:
                answer, enough = '"memory"', False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            sink.write(answer.encode() + b"\n")
            sink.flush()
            if not enough:
                return


def _limit(memory: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Ctrl-C is meant for the program that this one serves
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    os.chdir("/")


def _answers(request: dict[str, Any]) -> list[Any]:
    """For each conversation its runs, or a text that says why there are none."""
    try:
        template = compiled(request["template"])
    except MemoryError:
        raise
    except Exception as error:
        return [f"is malformed: {_reason(error)}"] * len(request["conversations"])
    answers: list[Any] = []
    for messages, asks in request["conversations"]:
        try:
            text = rendered(template, messages, request["variables"], asks)
            if len(text) > _LONGEST_TEXT:
                raise OverflowError(f"it writes more than {_LONGEST_TEXT} characters")
            answers.append(_runs(text))
        except MemoryError:
            raise
        # a template can fail in as many ways as a program
        except Exception as error:
            answers.append(f"fails: {_reason(error)}")
    return answers


def _runs(text: str) -> list[tuple[int, str]]:
    """The runs of characters with the same mark, each with the mark's number."""
    runs, at = [], 0
    plain = str.__str__(text)
    for mark, group in itertools.groupby(marks_of(text)):
        length = sum(1 for _ in group)
        runs.append((ord(mark), str.__getitem__(plain, slice(at, at + length))))
        at += length
    return runs


def _reason(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
