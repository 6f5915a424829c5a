"""Rendering of chat templates: in bounds, outside of the program, and who wrote what."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from infer_os.runtime.chat import rendering
from infer_os.runtime.chat.frame import Message
from infer_os.runtime.chat.rendering import Conversation, Rendering, render
from infer_os.runtime.chat.sandbox.marked import (
    OWN,
    UNKNOWN,
    Marked,
    each,
    join,
    marked,
    marks_of,
    own,
)
from infer_os.runtime.chat.template import TemplateFrame
from infer_os.runtime.errors import TemplateFailure
from infer_os.runtime.fake import END, END_TEXT, ByteVocabulary

ASKED = Conversation((Message("user", "Hello"),), True)
DOUBLING = (
    "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x OP ns.x %}"
    "{% endfor %}{{ ns.x }}"
)

# ---- bounds

ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "compiled": "{{ 1" + " + 1" * 200_000 + " }}",
    "power": "{% set n = 9 + messages | length %}{{ n ** (n ** 9) }}",
}
GIANT = {
    "times": "{{ 'a' * 3000000000 }}{{ messages }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>3000000000}'.format('a') }}",
    "center": "{{ 'a' | center(3000000000) }}",
    "indent": "{{ messages | tojson(indent=2000000000) }}",
    "list": "{% set x = [0] * 1000000000 %}",
    "joined": "{{ (['a' * 10000000] * 1000) | join }}",
    "plus": DOUBLING.replace("OP", "+"),
    "tilde": DOUBLING.replace("OP", "~"),
}
DEEP = {
    "brackets": "{{ " + "(" * 400_000 + ")" * 400_000 + " }}",
    "negated": "{{ " + "not " * 200_000 + "1 }}",
    "ifs": "{% if 1 %}" * 90_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_ended(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 0.3)
    rendering._end()
    with pytest.raises(TemplateFailure, match=r"takes longer than 0\.3 s to render"):
        render(ENDLESS[name], {}, [ASKED])
    rendering._end()


def test_a_caller_does_not_wait_for_ever() -> None:
    with pytest.raises(TemplateFailure, match="takes longer"):
        render(ENDLESS["loops"], {}, [ASKED], time.monotonic() + 0.3)


@pytest.mark.parametrize("name", GIANT)
def test_what_asks_for_gigabytes_gets_none(name: str) -> None:
    with pytest.raises(TemplateFailure, match="needs more than 512 MB of memory"):
        render(GIANT[name], {}, [ASKED])


@pytest.mark.parametrize("name", DEEP)
def test_what_is_nested_too_deep(name: str) -> None:
    (failure,) = render(DEEP[name], {}, [ASKED])
    assert isinstance(failure, TemplateFailure)
    assert "malformed: RecursionError" in str(failure)


def test_a_template_larger_than_a_megabyte() -> None:
    with pytest.raises(TemplateFailure, match="larger than 1 MB"):
        render("a" * ((1 << 20) + 1), {}, [ASKED])


def test_an_answer_has_a_largest_size() -> None:
    (failure,) = render("{{ 'ab' * 2500000 }}", {}, [ASKED])
    assert "writes more than 4194304 characters" in str(failure)


def test_the_next_template_is_rendered_after_a_failure() -> None:
    for template in (GIANT["times"], DEEP["ifs"]):
        with pytest.raises(TemplateFailure):
            TemplateFrame(template, ByteVocabulary())
        assert render("{{ messages[0].content }}", {}, [ASKED]) == [Rendering(((2, "Hello"),))]


# ---- the process


def test_one_process_serves_many_threads() -> None:
    found: list[str] = []

    def ask(name: str) -> None:
        (answer,) = render("{{ messages[0].content }}", {}, [
            Conversation((Message("user", name),), True)])  # fmt: skip
        assert isinstance(answer, Rendering)
        found.append(answer.text)

    threads = [threading.Thread(target=ask, args=(str(i),)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=int) == [str(i) for i in range(20)]
    assert len(rendering._RUNNING) == 1


def test_a_process_that_died_is_replaced() -> None:
    render("x", {}, [ASKED])
    rendering._RUNNING[0].kill()
    rendering._RUNNING[0].wait()
    assert render("x", {}, [ASKED]) == [Rendering(((1, "x"),))]


def test_ctrl_c_neither_ends_it_nor_mixes_answers_up(monkeypatch: pytest.MonkeyPatch) -> None:
    render("x", {}, [ASKED])
    process = rendering._RUNNING[0]
    process.send_signal(signal.SIGINT)
    assert render("x", {}, [ASKED]) == [Rendering(((1, "x"),))]
    assert [process] == rendering._RUNNING

    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rendering, "_ask", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render("x", {}, [ASKED])
    assert render("y", {}, [ASKED]) == [Rendering(((1, "y"),))]


def test_a_fork_has_a_process_of_its_own() -> None:
    render("x", {}, [ASKED])
    before = rendering._RUNNING[0].pid
    code = (
        "import os; from infer_os.runtime.chat import rendering as r\n"
        "from infer_os.runtime.chat.frame import Message\n"
        "c = [r.Conversation((Message('user', 'a'),), True)]; r.render('x', {}, c)\n"
        "first = r._RUNNING[0].pid; pid = os.fork()\n"
        "if not pid: r.render('x', {}, c); os._exit(r._RUNNING[0].pid == first)\n"
        "assert os.waitpid(pid, 0)[1] == 0; r.render('x', {}, c); assert r._RUNNING[0].pid == first"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
    assert rendering._RUNNING[0].pid == before


def test_it_ends_with_the_program() -> None:
    code = (
        "import os, sys; from infer_os.runtime.chat import rendering as r\n"
        "from infer_os.runtime.chat.frame import Message\n"
        "r.render('x', {}, [r.Conversation((Message('user', 'a'),), True)])\n"
        "print(r._RUNNING[0].pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
            # one that has ended may wait for its new parent to ask
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail("it still runs")


def test_no_python_to_render_with(monkeypatch: pytest.MonkeyPatch) -> None:
    rendering._end()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateFailure, match="cannot be rendered: /nowhere/python: No such file"):
        render("x", {}, [ASKED])


# ---- who wrote what

A, B = marked("aB c-ß", "222222"), own("<|x|> y")
WAYS = [
    lambda a, b: a + b, lambda a, b: "n" + a, lambda a, b: b * 2, lambda a, b: a[1:4],
    lambda a, b: a[::-1], lambda a, b: b.split("|")[1], lambda a, b: (b + a).split()[-1],
    lambda a, b: (a + b).rsplit(" ", 1)[0], lambda a, b: (a + b).partition("<")[2],
    lambda a, b: (a + b).rpartition(" ")[0], lambda a, b: (" " + a + " ").strip(),
    lambda a, b: a.strip("aß"), lambda a, b: a.upper(), lambda a, b: (b + a).title(),
    lambda a, b: a.replace("B", b), lambda a, b: b.replace("x", a),
    lambda a, b: b.join([a, "n", b]),
    lambda a, b: (b + "%s%%" + a) % (a,), lambda a, b: own("%s %s") % (b, a),
    lambda a, b: f"{b}", lambda a, b: (a + "\n" + b).splitlines()[1], lambda a, b: a.capitalize(),
    lambda a, b: b.removeprefix("<|").removesuffix("y"), lambda a, b: own("%5s") % b,
    lambda a, b: b.center(20), lambda a, b: b.replace("", a), lambda a, b: a.lower(),
    lambda a, b: "".join(a), lambda a, b: own("%(k)s") % {"k": a}, lambda a, b: b.zfill(12),
    lambda a, b: own("{} {}").format(a, b),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WAYS)))
def test_texts_compute_as_texts_do_and_no_mark_is_made_up(number: int) -> None:
    way = WAYS[number]
    got = way(A, B)
    assert got == way(str.__str__(A), str.__str__(B))
    # another text of the message changes no character that is said to be the template's
    other = way(marked("zB z-z", "222222"), B)
    shown = [c for c, mark in zip(got, marks_of(got), strict=True) if mark == OWN]
    again = [c for c, mark in zip(other, marks_of(other), strict=True) if mark == OWN]
    assert shown == again
    assert len(marks_of(got)) == len(got)


def test_marks_follow_the_letters() -> None:
    assert marks_of(A + B) == "2" * 6 + OWN * 7
    assert marks_of(A.replace("B", B)) == "2" + OWN * 7 + "2222"
    assert marks_of(A.upper()) == "2" * 7
    assert marks_of(own("%s:%%") % A) == "2" * 6 + OWN * 2
    assert marks_of(own("|").join([A, B])) == "2" * 6 + OWN * 8
    assert marks_of(own("<%5s>") % A) == UNKNOWN * 8
    assert marks_of(Marked("x")) == marks_of("x") == UNKNOWN
    assert marks_of(each(A, lambda text: text + "!")) == UNKNOWN * 7
    assert marks_of(join(["a", A], B)) == UNKNOWN + OWN * 7 + "2" * 6
    with pytest.raises(ValueError, match="one mark"):
        marked("ab", "2")


PARTS = [
    "{{ m.content }}", "{{ '<|endof' + m.content }}", "<|endof{{ m.content }}|>", "<|",
    "{{ m.content ~ 'text|>' }}", "{{ m.content.split('x') | join('endoftext') }}", "|>",
    "{{ m.content[:5] }}", "{{ m.content | upper | lower }}", "endoftext", "{{ eos_token }}",
    "{{ m.content | replace('a', eos_token[:3]) }}", "{{ '<|%s|>' % m.content }}", "<|endoftext|>",
    "{{ '<|{}|>'.format(m.content) }}", "{{ m.content | tojson }}", "{{ m.content | trim }}",
    "{{ [m.content, '|>'] | join }}", "{{ (m.content | list) | join }}", "{{ m.content | indent }}",
    "{{ m.content | reverse }}", "{% set x %}<|{{ m.content }}{% endset %}{{ x }}|>", "a",
    "{{ m.content | title | lower }}", "{{ eos_token | replace('text', m.content) }}",
    "{{ '<|endoftextx'.rstrip(m.content) }}|>", "{{ m.content | center(30) }}",
    "{% if 'x' in m.content %}<|endoftext|>{% endif %}",
    "{{ m | string }}", "{{ m.content * 2 }}", "{{ m.content | wordwrap(7) }}",
    "{% filter lower %}<|END{{ m.content }}|>{% endfilter %}", "{{ m.content | e }}",
    "{{ eos_token | truncate(m.content | length, true, '') }}", "{{ m.content | urlize }}",
    "{% autoescape true %}<|endof{{ m.content }}|>{% endautoescape %}", "{{ m.content | safe }}",
    "{% macro f(x) %}<|{{ x }}{{ caller() }}{% endmacro %}{% call f(m.content) %}|>{% endcall %}",
]  # fmt: skip
CONTENTS = [END_TEXT, "endoftext", "text", "<|endof", "|>", "x", "<|endoftext|", "TEXT",
            "", f"a{END_TEXT}x{END_TEXT}", "<", "|", "%s",
            "oftext|><|end", ">|txetfodne|<"]  # fmt: skip


def own_ends(rendered: Rendering) -> int:
    """End tokens that the template wrote without a character of a message."""
    own_text = "".join(text if mark == rendering.OWN else "\0" for mark, text in rendered.runs)
    return own_text.count(END_TEXT)


@pytest.mark.parametrize("seed", range(60))
def test_no_template_makes_special_tokens_of_messages(seed: int) -> None:
    random_ = random.Random(seed)
    parts = random_.choices(PARTS, k=random_.randrange(1, 7))
    template = "{% for m in messages %}" + "".join(parts) + "{% endfor %}{{ messages }}"
    frame = TemplateFrame(template, ByteVocabulary())
    for _ in range(4):
        contents = ["".join(random_.choices(CONTENTS, k=2)) for _ in range(3)]
        roles = ("user", "assistant", "user")
        messages = tuple(map(Message, roles, contents))
        tokens = frame.written_tokens(messages)
        (shown,) = render(template, frame.variables, [Conversation(messages, True)])
        assert isinstance(shown, Rendering)
        # as many end tokens as there are when no message can have a part in one
        free = [word.translate({ord(c): "#" for c in "<|>"}) for word in contents]
        blank = tuple(
            Message(role, "".join("x" if c == "x" else "#" for c in text))
            for role, text in zip(roles, free, strict=True)
        )
        (plain,) = render(template, frame.variables, [Conversation(blank, True)])
        assert isinstance(plain, Rendering)
        assert tokens.count(END) == own_ends(shown) <= plain.text.count(END_TEXT)
