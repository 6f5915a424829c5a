"""The command line's options, each declared once and reused by every command."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from ..runtime.settings import CONSTRAINTS, SAMPLER_SETTINGS, SamplerSetting
from . import completing
from .typed_numbers import number, whole

#: Options that are not spelled like the record field that they set.
_OPTIONS = {
    "strings": "--stop", "batches": "--batch", "n_prompt": "--prompt-tokens",
    "n_decode": "--tokens",
}  # fmt: skip


def spelled(error: Exception) -> str:
    """An error's message, naming the option that sets the record's field."""
    from ..runtime.errors import SettingsError

    if not isinstance(error, SettingsError):
        return str(error)
    name = f"--{error.field.replace('_', '-')}"
    return error.spelled(_OPTIONS.get(error.field, name))


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a checkpoint folder, a catalog name (gpt-j-6B) or a hub id "
        "(EleutherAI/gpt-j-6B, or OWNER/NAME:Q4_K_M for a ready GGUF file). Anything that is not "
        "yet a GGUF file is converted once and cached.",
        show_default=False, autocompletion=completing.model_names,
    ),
]  # fmt: skip
PlanModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a checkpoint folder, a catalog name (gpt-j-6B) or a hub id "
        "(EleutherAI/gpt-j-6B), of which only the config is read.",
        show_default=False, autocompletion=completing.model_names,
    ),
]  # fmt: skip
Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora", metavar="DIR|ID[:SCALE]",
        help="A LoRA adapter (PEFT's format) to add to the weights when they are converted; may be "
        "given several times.",
        show_default=False,
    ),
]  # fmt: skip
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter", metavar="[NAME=]DIR|ID|FILE[:SCALE]",
        help="A LoRA adapter (PEFT's format, or llama.cpp's GGUF) to load beside the weights, "
        "which stay as they are; may be given several times. The first is used where none is "
        "named.",
        show_default=False,
    ),
]  # fmt: skip
CachedModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file; or a checkpoint folder, a catalog name (gpt-j-6B) or a hub id "
        "(EleutherAI/gpt-j-6B) that was converted into the cache.",
        show_default=False, autocompletion=completing.model_names,
    ),
]  # fmt: skip
CachedType = Annotated[
    str,
    typer.Option(
        "--type", metavar="T", help="Which of the cached types to show.",
        show_default="q4_0, else the largest", autocompletion=completing.type_names,
    ),
]  # fmt: skip
ModelType = Annotated[
    str,
    typer.Option(
        "--type", metavar="T",
        help="Type to convert a folder or a name to: q8_0, q4_k_m, q4_0, ...",
        show_default="the cached one, else q4_0",
        autocompletion=completing.type_names,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", parser=whole, metavar="N", help="Threads to compute with.",
        show_default="one per usable core",
    ),
]  # fmt: skip

# ---- engine
Context = Annotated[
    int | None,
    typer.Option(
        "--context", parser=whole, metavar="N", help="Tokens of context.",
        show_default="what the model was trained for, at most 4096",
    ),
]  # fmt: skip
Load = Annotated[
    str,
    typer.Option(
        "--load", metavar="mmap|fast|locked|direct",
        help="mmap: use the file's own pages, shared between processes. fast: private copies in "
        "the fastest layout. locked: the file's pages, never dropped. direct: like fast, but "
        "bypassing the page cache.",
        autocompletion=completing.load_modes,
    ),
]  # fmt: skip
Memory = Annotated[
    str,
    typer.Option(
        "--memory", metavar="SIZE",
        help="Limit for all memory, such as 12GB (powers of 1000) or 12GiB (of 1024); a model "
        "that needs more is not loaded.",
        show_default="what is available",
    ),
]  # fmt: skip
Prefetch = Annotated[
    bool,
    typer.Option("--prefetch", help="Read the file into the page cache first, showing a bar."),
]
DropPages = Annotated[
    bool,
    typer.Option(
        "--drop-pages",
        help="Drop the file from the page cache: after loading if copies are made (fast), else at "
        "the end.",
    ),
]  # fmt: skip
NoNative = Annotated[
    bool,
    typer.Option("--no-native", help="Use only llama.cpp's own kernels."),
]
Kv = Annotated[
    str,
    typer.Option(
        "--kv", metavar="SPEC|auto",
        help="Types of the KV cache: TYPE, or TYPE:N,TYPE:N,... up to N tokens each, such as "
        "f16:512,q8_0:2048; K/V may differ (q8_0/q4_0). auto: chosen to fit the memory.  "
        "[default: f16]",
        show_default=False,
    ),
]  # fmt: skip
KvBudget = Annotated[
    str,
    typer.Option(
        "--kv-budget", metavar="SIZE",
        help="Choose the types so that the KV cache never takes more, such as 600MB.",
        show_default="no limit",
    ),
]  # fmt: skip

Draft = Annotated[
    str,
    typer.Option(
        "--draft", metavar="MODEL|auto|lookup|none",
        help="Guess tokens and verify several at once; the text stays the same, and guessing stops "
        "when it does not pay. lookup: what the text repeats. MODEL: also a small model of the "
        "same vocabulary. auto: the one that the catalog names, if any. none: no guesses.",
    ),
]  # fmt: skip
DraftMax = Annotated[
    int,
    typer.Option("--draft-max", parser=whole, metavar="N", help="Most guesses to verify at once."),
]


# ---- sampling
_PARSERS: dict[type, Any] = {int: whole, float: number}


def _sampler_parameter(row: SamplerSetting) -> inspect.Parameter:
    is_unset = bool(row.unset)
    typed = row.type if row.is_number else str
    kind: Any = typed | None if is_unset else typed
    option = typer.Option(
        row.option, metavar=row.metavar, help=row.help, parser=_PARSERS.get(typed),
        show_default=row.default_text or not is_unset,
    )  # fmt: skip
    return inspect.Parameter(
        row.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if is_unset else row.default,
        annotation=Annotated[kind, option],
    )


#: What people use most stands first in the help; the other settings follow in their order.
_FIRST_SHOWN = frozenset({
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", *CONSTRAINTS,
})  # fmt: skip
#: An option for each setting of the sampler that has one, as a parameter of a command.
SAMPLER_PARAMETERS = tuple(
    _sampler_parameter(row)
    for row in sorted(SAMPLER_SETTINGS.values(), key=lambda row: row.name not in _FIRST_SHOWN)
    if row.option
)
MaxTokens = Annotated[
    int,
    typer.Option(
        "-n", "--max-tokens", parser=whole, metavar="N",
        help="Write at most N tokens; -1: as many as the context holds.",
    ),
]  # fmt: skip
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="Stop before this text; may be given several times.",
        show_default=False,
    ),
]  # fmt: skip

# ---- what to answer
Prompt = Annotated[
    str | None,
    typer.Option(
        "-p", "--prompt", metavar="TEXT",
        help="Text to continue; piped input goes in front of it.", show_default=False,
    ),
]  # fmt: skip
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "-f", "--file", metavar="F", help="Read the prompt from a file; - is stdin.",
        show_default="stdin, unless it is a terminal",
    ),
]  # fmt: skip
RunModel = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A catalog name (gpt-j-6B), a hub id (EleutherAI/gpt-j-6B), a checkpoint folder "
        "or a GGUF file. Anything that is not yet a GGUF file is converted once and cached.",
        show_default=False, autocompletion=completing.model_names,
    ),
]  # fmt: skip
Message = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        help="Answer this message and end; piped input goes in front of it. Without it, a pipe "
        "is the message, and a terminal begins a conversation.",
        show_default=False,
    ),
]  # fmt: skip
ModelAgain = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="MODEL, as an option.",
        show_default=False, autocompletion=completing.model_names,
    ),
]  # fmt: skip
MessageAgain = Annotated[
    str | None,
    typer.Option(
        "-p", "--prompt", metavar="TEXT", help="PROMPT, as an option.",
        show_default=False,
    ),
]  # fmt: skip
Use8bit = Annotated[
    bool,
    typer.Option(
        "--use-8bit", help="Like --type q8_0: twice the size of 4 bits, no visible loss."
    ),
]  # fmt: skip
Use4bit = Annotated[
    bool,
    typer.Option(
        "--use-4bit",
        help="Like --type q4_0: the fastest 4-bit type on a CPU; --type q4_k_m loses less, "
        "and is slower.",
    ),
]  # fmt: skip
Interactive = Annotated[
    bool, typer.Option("--interactive", help="Begin a chat; PROMPT is its first message.")
]

# ---- conversation
System = Annotated[
    str,
    typer.Option(
        "--system", metavar="TEXT", help="System prompt: a text that opens the conversation."
    ),
]
Style = Annotated[
    str,
    typer.Option(
        "--style", metavar="NAME",
        help="How messages are framed: dialogue, plain, template (the file's own), or a "
        "family's, such as dialogpt; docs/chat.md has the list.",
        show_default="the model's own", autocompletion=completing.style_names,
    ),
]  # fmt: skip
SessionFile = Annotated[
    Path | None,
    typer.Option(
        "--session", metavar="FILE",
        help="Continue the conversation in FILE, if it exists, and save it there at the end.",
        show_default=False,
    ),
]  # fmt: skip

# ---- batch
Records = Annotated[
    Path,
    typer.Option(
        "-i", "--input", metavar="FILE",
        help="Records: .jsonl, .csv, .parquet, or .txt with one prompt per line; - is stdin.",
    ),
]  # fmt: skip
Answers = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE",
        help="Answers: .jsonl, .csv or .parquet; - is stdout, as JSON lines.",
    ),
]  # fmt: skip
Resume = Annotated[bool, typer.Option("--resume", help="Continue an unfinished output.")]
Replace = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Ordered = Annotated[
    bool, typer.Option("--ordered", help="Write the output in the order of the input.")
]
Parallel = Annotated[
    str,
    typer.Option(
        "--parallel", metavar="N|auto",
        help="Sequences at once; auto: as many as fit in memory and still add speed.",
    ),
]  # fmt: skip
Beams = Annotated[
    int,
    typer.Option(
        "--beams", parser=whole, metavar="N",
        help="Search for the likeliest text by following N candidates at once.",
        show_default="draw tokens",
    ),
]  # fmt: skip
Logprobs = Annotated[
    int,
    typer.Option(
        "--logprobs", parser=whole, metavar="K",
        help="Report each token's log-probability, and those of the K likeliest.",
    ),
]  # fmt: skip
Prefix = Annotated[
    Path | None,
    typer.Option(
        "--prefix", metavar="FILE",
        help="A text to put in front of every prompt, such as examples.", show_default=False,
    ),
]  # fmt: skip
BatchSystem = Annotated[
    str,
    typer.Option(
        "--system", metavar="TEXT",
        help="System message for conversations (messages) without one.",
    ),
]  # fmt: skip
Ray = Annotated[
    str,
    typer.Option(
        "--ray", metavar="auto|ADDRESS",
        help="Compute on every node of a Ray cluster: this machine's, or the one at HOST:PORT.",
        show_default=False,
    ),
]  # fmt: skip
Statistics = Annotated[
    bool, typer.Option("--json", help="Statistics as one JSON object on stderr.")
]

# ---- measurements
RowsFile = Annotated[
    Path | None,
    typer.Option(
        "--rows", metavar="FILE", help="Append the rows to FILE, as JSON lines.",
        show_default=False,
    ),
]  # fmt: skip
