"""Compare what chat templates write with transformers' ``apply_chat_template``, text and tokens.

``check_templates.py check`` does so live. ``check_templates.py write`` stores what transformers
makes of them in chat_templates.json, which ``make test`` compares with.

Needs transformers; torch it does without.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from chat_templates import (  # noqa: E402
    CONVERSATIONS,
    TEMPLATES,
    checkpoint_folder,
    gguf_of,
    written,
)


def expected(folder: Path) -> dict[str, Any]:
    """For each template and conversation the text and the tokens, or None where it refuses."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found: dict[str, Any] = {}
    for name, template in TEMPLATES.items():
        found[name] = {}
        for key, conversation in CONVERSATIONS.items():
            messages = [{"role": role, "content": text} for role, text in conversation]
            options: dict[str, Any] = {"chat_template": template, "add_generation_prompt": True}
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            tokens = tokenizer.apply_chat_template(messages, return_dict=False, **options)
            found[name][key] = [text, tokens]
    return found


def check(folder: Path, wanted: dict[str, Any]) -> int:
    """How many of our texts and tokens differ; each is printed."""
    from infer_os.native.model import LlamaModel

    failures = 0
    with LlamaModel(gguf_of(folder), vocab_only=True) as model:
        for name, conversations in wanted.items():
            for key, (text, tokens) in conversations.items():
                got = written(model.vocab, TEMPLATES[name], CONVERSATIONS[key])
                if got != (text, tokens):
                    failures += 1
                    print(f"{name}, {key}: expected\n{text!r}\n{tokens}\ngot\n{got[0]!r}\n{got[1]}")
    return failures


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("write", "check"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = checkpoint_folder(Path(temporary) / "checkpoint")
        wanted = expected(folder)
        if arguments.command == "write":
            data = json.dumps(wanted, ensure_ascii=False, separators=(",", ":"))
            (HERE / "chat_templates.json").write_text(data + "\n", encoding="utf-8")
            return
        failures = check(folder, wanted)
    print(f"{failures} templates differ" if failures else f"all {len(wanted)} templates agree")
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
