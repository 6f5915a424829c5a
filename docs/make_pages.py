"""Write the pages of docs/ that follow from the code: those of :data:`PAGES`.

Goes in: the command line's own help, the catalog, the sampler's settings, the types, and the
measured rows of quality.md. Comes out: the pages. ``tests/test_docs.py`` compares them with what
this script would write.

    python docs/make_pages.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from infer_os.cli import app
from infer_os.convert.weight_options import weight_options
from infer_os.models.architectures import ARCHITECTURES, describe
from infer_os.models.catalog import CATALOG, CatalogModel, find_model
from infer_os.models.weight_types import RECIPES
from infer_os.native.sampler_chain import FILTERS
from infer_os.runtime.settings import CHAT_SAMPLING, SAMPLER_SETTINGS
from infer_os.sizes import count_text, size_text

DOCS = Path(__file__).parent
REFERENCES = DOCS.parent / "tests" / "reference"
# a terminal of 80 columns: the command framework leaves two of them free
_WIDTH = 80 - 2
_EXAMPLE = "gpt-j-6B"
_FAMILIES = {row.name: row.family for row in ARCHITECTURES}


_N_SEEDS = 3
#: Architecture, whether it is exact, what the converter does, and the names of its references.
_VARIATIONS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("GPT-NeoX, linear and YaRN scaling, any `rotary_pct`", "yes", "q, k, v unfused", ("neox",)),
    ("GPT-J", "yes", "rotary rows as halves", ("gptj",)),
    ("BLOOM", "yes", "q, k, v unfused", ("bloom",)),
    (
        "GPT-2, with any of its attention scales", "yes",
        "layers transposed; scales go into q",
        ("gpt2-e", "gpt2-l", "gpt2-n", "gpt2-u"),
    ),
    (
        "GPT-2 with muP (Cerebras)", "yes",
        "scales go into embeddings, q and the last norm", ("gpt2-mup",),
    ),
    (
        "GPT-2 with ReLU", "to 4e-5 of an activation",
        "ReLU is GELU of 4096 times the value, divided by that", ("gpt2-relu",),
    ),
    ("CodeGen", "yes", "q, v, k unfused; rotary rows as halves", ("codegen",)),
    (
        "GPT-BigCode (StarCoder, SantaCoder)", "yes", "one key head stays one", ("bigcode",)
    ),
    ("OPT", "to 4e-5 of an activation", "ReLU as above; positions from row 2", ("opt",)),
    ("Galactica (OPT with GELU)", "yes", "no biases; text is cut by our runtime", ("galactica",)),
    (
        "GPT-Neo, TinyStories", "yes; by llama.cpp's own kernels to 256 tokens",
        "q by the root of the head's width; our attention computes the windows", ("gpt-neo",),
    ),
    ("XGLM", "yes", "its sinusoids become a table; the embedding scaled", ("xglm",)),
    ("MPT (`clip_qkv`, shared key heads)", "yes", "nothing", ("mpt",)),
)  # fmt: skip


def commands_page() -> str:
    """Every command's help, as a terminal of 80 columns shows it."""
    sections = [f"## {path}\n\n```\n{text}\n```\n" for path, text in help_pages()]
    return (
        "# Every command\n\nWhat `--help` says, on a terminal of 80 columns, laid out by typer "
        f"{typer.__version__}. The guides are listed in the [index](README.md).\n\n"
        + "\n".join(sections)
    )


def help_pages() -> Iterator[tuple[str, str]]:
    """``infer-os``, ``infer-os run``, ...: each with its help."""
    yield from _help_pages(typer.main.get_command(app), "infer-os", None)


def _help_pages(command: Any, name: str, parent: Any) -> Iterator[tuple[str, str]]:
    context = command.context_class(
        command, info_name=name, parent=parent, terminal_width=_WIDTH, color=False,
        help_option_names=["-h", "--help"],
    )  # fmt: skip
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield context.command_path, text.strip()
    for child, below in getattr(command, "commands", {}).items():
        yield from _help_pages(below, child, context)


def models_page() -> str:
    """The catalog as a table."""
    heads = ("name", "hub id", "family", "parameters", "q8_0", "q4_0", "draft partner", "style")
    exact = ("architecture", "graph", "exact", "what is done", "KL")
    rows = [_model_row(model) for model in sorted(CATALOG, key=_order)]
    return f"""# Models

## What runs

llama.cpp's graphs compute these architectures as they are; the converter reorders or multiplies
weights where a network differs. *KL* is the largest mean KL divergence, in nats per token, of
{_N_SEEDS} random checkpoints of every variation, against transformers in float32, to the full
context: F32 weights on llama.cpp's own kernels (GPT-Neo's on ours), as `make reference-check`
prints it. The bound is 1e-5, and the most likely token is the same but for near ties.

{_table(exact, [*_exactness_rows()], numbers=range(4, 5))}

These do not run, since no graph of this llama.cpp computes them: OPT-350m (norms behind its
blocks), Falcon-RW (ALiBi divided by the root of a head's width), GPT-1, CTRL, RWKV-4, Persimmon;
GPT-NeoX with dynamic rope scaling. GPT-NeoX-Japanese and BioGPT have tokenizers that llama.cpp
does not have: one line names what is missing.

## Models known by name

Wherever a command says MODEL, you can use a name from this table or its hub id; case does not
matter. Any other checkpoint of these families works by its hub id or from a folder. Sizes
are those of the tensors of the converted file. A running model needs more, depending on the
context: `infer-os plan MODEL` and `infer-os models` say how much on your machine.

*Draft partner* is the model that `--draft auto` takes ([drafts.md](drafts.md)); *style* says how
its conversations are framed ([chat.md](chat.md)).

{_table(heads, rows, numbers=range(3, 6))}
"""


def _exactness_rows() -> Iterator[tuple[str, ...]]:
    """What runs on which graph, with the largest KL of its references."""
    measured = json.loads((REFERENCES / "measured.json").read_text())
    for name, exact, done, prefixes in _VARIATIONS:
        found = {k: kinds["f32"] for k, kinds in measured.items() if k.startswith(prefixes)}
        folder = next(REFERENCES / k for k in found if (REFERENCES / k).is_dir())
        graph = describe(json.loads((folder / "config.json").read_text())).graph
        yield name, f"`{graph}`", exact, done, f"{max(found.values()):.1e}"


def _order(model: CatalogModel) -> tuple[int, str]:
    return list(_FAMILIES).index(model.architecture), model.id.lower()


def _model_row(model: CatalogModel) -> tuple[str, ...]:
    network = describe(model.config)
    sizes = {option.type: option.n_bytes for option in weight_options(network)}
    draft = find_model(model.draft).name if model.draft else ""  # type: ignore[union-attr]
    return (
        f"`{model.name}`", f"[{model.id}](https://huggingface.co/{model.id})",
        _FAMILIES[model.architecture], count_text(network.n_params), size_text(sizes["q8_0"]),
        size_text(sizes["q4_0"]), f"`{draft}`" if draft else "", f"`{model.style}`",
    )  # fmt: skip


def types_page() -> str:
    """The types of weights: what they cost, and what was measured of them."""
    model = find_model(_EXAMPLE)
    assert model is not None
    sizes = {option.type: option.n_bytes for option in weight_options(describe(model.config))}
    n_params = describe(model.config).n_params
    quality = measured_types((DOCS / "quality.md").read_text("utf-8"))
    heads = (
        "`--type`", "most tensors", "head", f"{_EXAMPLE}: size", "bits per weight",
        "bundled model: KL", "change of perplexity", "same top",
    )  # fmt: skip
    rows = [
        (
            f"`{name}`", recipe.base, recipe.head, size_text(sizes[name]),
            f"{8 * sizes[name] / n_params:.2f}", quality[name]["KL"], quality[name]["change"],
            quality[name]["same top"],
        )
        for name, recipe in RECIPES.items()
    ]  # fmt: skip
    mixtures = ", ".join(f"`{name}`" for name, recipe in RECIPES.items() if recipe.finer)
    return f"""# Types of weights

These are the types that `--type` takes, in `convert`, `run` and every command that converts. Norms,
biases and position embeddings always stay F32. If a row does not divide into a type's blocks, the
tensor takes the next type that fits, and the report says so. The mixtures
({mixtures}) keep some tensors a step finer than the rest.

{_table(heads, rows, numbers=range(3, 8))}

Sizes and bits are those of {_EXAMPLE}'s tensors, by the same arithmetic as `infer-os plan`. The
last three columns are measured: the bundled model of 5.8 M parameters on its held-out text, against
its own F32 weights; KL divergence in nats per token. [quality.md](quality.md) has that model's bits
per weight, the KV caches, and the command that measures them;
`infer-os eval MODEL --types all --text FILE` measures another model.

- `q4_0` computes fastest and is the default; `q8_0` is nearly identical to the original.
- `q4_k_m` and `q5_k_m` lose less than `q4_0` and `q5_0`, for a little more memory.
- `auto` takes the finest type that fits in this machine's memory.
- `--calibrate TEXT` halves the loss of most types ([gptq.md](gptq.md)).
- `--bits N` or `--size SIZE` chooses a type for every matrix ([gptq.md](gptq.md#types-for-a-size)).
"""


def sampling_page() -> str:
    """The settings of the sampler."""
    heads = ("setting", "option", "default", "may be", "what it does")
    rows = [
        (
            f"`{row.name}`", f"`{row.option} {row.metavar}`".replace("|", "\\|") * bool(row.option),
            row.default_text or row.unset or f"{row.default}",
            row.kind.expected or "a text", row.help,
        )
        for row in SAMPLER_SETTINGS.values()
    ]  # fmt: skip
    words = " and ".join(
        f"`{word}`"
        for word in dict.fromkeys(row.unset for row in SAMPLER_SETTINGS.values())
        if word
    )
    return f"""# How the next token is drawn

The settings of every command that writes text. They are also keys of a record of a batch
([batch.md](batch.md)), fields of a server's requests ([serve.md](serve.md)) and names for `/set`
in a chat ([chat.md](chat.md)), where {words} stand for a default that is no value. In Python they
are fields of `SamplingSettings` ([python.md](python.md)).

{_table(heads, rows, numbers=range(0))}

## The order

1. What must not come next: a constraint, `no_repeat_ngram`, `min_tokens`.
2. `logit_bias`, then the penalties (repeat, frequency, presence), then DRY.
3. The filters in llama.cpp's order ({", ".join(f"`{name}`" for name in FILTERS)}), then XTC.
4. The temperature, then the draw.

The samplers are llama.cpp's own, except for `no_repeat_ngram` and `min_tokens`, and the order is
its default order. At temperature 0 the likeliest token is taken, so 3 and 4 are left out.

## What goes together

- **Constraints.** Of `grammar`, `json_schema` and `regex` one may be given
  ([constraints.md](constraints.md)). Nothing lets a forbidden token through: neither a bias nor a
  penalty. Where `no_repeat_ngram` and `min_tokens` leave none of the allowed tokens, only the
  constraint counts, so a text that is complete by its grammar ends.
- **`min_tokens`** holds back the model's own end of text. A stop string still ends it.
- **The penalties and DRY** count the prompt as well as the text. OpenAI's server counts only the
  text.
- **DRY** begins again at a line break, a colon, a quotation mark and an asterisk, as llama.cpp
  does.
- **`mirostat`** takes the place of 3: `top_k`, `top_p` and `min_p` are left out, and
  `top_n_sigma`, `typical_p`, XTC, `dynatemp_range` and `adaptive_target` are refused beside it.
  **`adaptive_target`** replaces the draw; llama.cpp suggests `min_p` as the only filter before
  it.
- **The dynamic temperature** is never below 0.001.
- **Drafts** ([drafts.md](drafts.md)) keep the distribution of the text with all of these, and the
  text itself at temperature 0 and with a seed. With a constraint, `mirostat` or `adaptive_target`
  each token is drawn as without guesses, so fewer guesses are kept.

Where replies are drawn, the default of `repeat_penalty` is {CHAT_SAMPLING.repeat_penalty}.
"""


def measured_types(text: str) -> dict[str, dict[str, str]]:
    """The rows of the table of weights in quality.md, by type, each by its column's name."""
    heads: list[str] = []
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `--"):
            heads = cells
        elif heads[:1] == ["`--type`"] and (name := re.fullmatch(r"`(\w+)`", cells[0])):
            found[name[1]] = dict(zip(heads, cells, strict=True))
    return found


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: range) -> str:
    marks = ["--:" if i in numbers else "---" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows))


PAGES = {
    "commands.md": commands_page, "models.md": models_page, "sampling.md": sampling_page,
    "types.md": types_page,
}  # fmt: skip


def main() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
