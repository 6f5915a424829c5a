"""jinja2 as transformers sets it up for chat templates, with texts that record who wrote them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import sync_do_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .marked import FIRST_MESSAGE, Marked, each, join, marked, marks_of, own, whole

#: Compiled templates to keep; a program uses one or two.
_KEPT = 4


class GenerationTag(Extension):
    """``{% generation %}``: marks the text that a model is trained on, and does not change it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        """A call of the tag's body, which gives it its own scope, as in transformers."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Literals(NodeTransformer):
    """Takes the texts out of a template, so that they come back as the template's own."""

    def __init__(self, literals: list[Marked]) -> None:
        self._literals = literals

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:
        """Text outside of all tags."""
        return nodes.MarkSafeIfAutoescape(self._reference(node.data)).set_lineno(node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Node:
        """A constant."""
        return self._reference(node.value) if type(node.value) is str else node

    def _reference(self, text: str) -> nodes.Expr:
        self._literals.append(own(text))
        place = nodes.Const(len(self._literals) - 1)
        return nodes.Getitem(nodes.EnvironmentAttribute("literals"), place, "load")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """The environment of a chat template."""

    concat = staticmethod(join)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        self.literals: list[Marked] = []
        self.filters["tojson"] = _to_json
        self.filters["join"] = _join
        self.filters["title"] = lambda text: each(text if isinstance(text, str) else str(text),
                                                  jinja2.filters.do_title)  # fmt: skip
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _strftime_now

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``, in whose result a role's name stays the template's own."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None or type(value.__self__) is not Marked:
            return wrapped

        def formatted(*args: Any, **kwargs: Any) -> str:
            text = str.__str__(wrapped(*args, **kwargs))
            return whole(text, value.__self__, *args, *kwargs.values())

        return formatted


# what jinja2's "~" joins texts with
jinja2.runtime.concat = join  # type: ignore[attr-defined]


@functools.lru_cache(_KEPT)
def compiled(template: str) -> jinja2.Template:
    """A template, ready to be rendered.

    Raises:
        jinja2.TemplateError: it is malformed.
        RecursionError: it is nested too deeply.
    """
    environment = ChatEnvironment()
    tree = _Literals(environment.literals).visit(environment.parse(template))
    tree.set_environment(environment)
    code = environment.compile(tree)
    return environment.template_class.from_code(
        environment, code, environment.make_globals(None), None
    )


def rendered(
    template: jinja2.Template,
    messages: Sequence[Sequence[str]],
    variables: Mapping[str, str],
    asks: bool,
) -> str:
    """What a template writes for messages (role, content); ``asks``: a reply will follow."""
    return template.render(
        messages=[
            {"role": own(role), "content": marked(text, chr(FIRST_MESSAGE + i) * len(text))}
            for i, (role, text) in enumerate(messages)
        ],
        tools=None,
        documents=None,
        add_generation_prompt=asks,
        **{name: own(text) for name, text in variables.items()},
    )


def _refuse(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


@jinja2.pass_eval_context
def _join(context: Any, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    return sync_do_join(context, value, own(d) if d == "" else d, attribute)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's escapes for HTML, with the arguments that transformers gives it."""
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    if type(value) is not Marked:
        return text
    # an escape has the same writer as its letter
    spelled = [json.dumps(char, ensure_ascii=ensure_ascii)[1:-1] for char in str.__iter__(value)]
    pairs = zip(marks_of(value), spelled, strict=True)
    marks = "".join(mark * len(escape) for mark, escape in pairs)
    return join([own('"'), marked(text[1:-1], marks), own('"')])
