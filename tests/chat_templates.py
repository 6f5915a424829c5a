"""Chat templates in the manner of published ones, conversations, and a vocabulary for both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from helpers import REPOSITORY

#: Special tokens that the bundled vocabulary gets in the place of its last ordinary ones.
SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|user|>",
    "<|assistant|>", "<|system|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<think>", "</think>", "<|prompter|>",
    "<|end|>", "<|end_of_turn|>",
)  # fmt: skip

_ASKS = "{% if add_generation_prompt %}"
_EACH = "{% for message in messages %}"
_CHATML = (
    _EACH + "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'"
    " }}{% endfor %}" + _ASKS + "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_ALTERNATE = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)
_SYSTEM_APART = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}"
    "{% endif %}"
)

TEMPLATES = {
    "chatml": _CHATML,
    "chatml with a default": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a "
    "helpful assistant.<|im_end|>\n{% endif %}" + _CHATML,
    "llama-2": _SYSTEM_APART
    + "{% for m in rest %}" + _ALTERNATE
    + "{% if loop.index0 == 0 and system %}{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + "
    "m['content'] %}{% else %}{% set text = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": _EACH + "{% set text = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}" + _ASKS
    + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "zephyr": _EACH + "\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] +"
    " eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] "
    "+ eos_token }}\n{% else %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}"
    "\n{% endfor %}",
    "roles in marks": _EACH + "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>' "
    "+ '\n' }}{% endfor %}" + _ASKS + "{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "roles in forms": "{% for m in messages %}{{ '<|%s|>' % m.role }}{{ '{}\n'.format(m.content) }}"
    "{{ '<|end|>' ~ '\n' }}{% endfor %}" + _ASKS + "{{ '<|{}|>'.format('assistant') }}{% endif %}",
    "vicuna": _SYSTEM_APART + "{{ system }}{% for m in rest %}{% if m.role == 'user' %}"
    "{{ ' USER: ' ~ m.content | trim }}{% else %}{{ ' ASSISTANT: ' ~ m.content ~ eos_token }}"
    "{% endif %}{% endfor %}" + _ASKS + " ASSISTANT:{% endif %}",
    "alpaca": "{%- for m in messages -%}\n{%- if m.role == 'system' -%}\n{{ m.content }}\n\n"
    "{% elif m.role == 'user' -%}\n### Instruction:\n{{ m.content }}\n\n{% else -%}\n### Response:"
    "\n{{ m.content }}{{ eos_token }}\n\n{% endif -%}\n{%- endfor -%}\n" + _ASKS
    + "### Response:\n{% endif %}",
    "mistral": "{%- if messages[0].role == 'system' %}{%- set loop_messages = messages[1:] %}"
    "{%- set system = messages[0].content %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{{- bos_token }}{%- for m in loop_messages %}{%- if m.role == 'user' %}"
    "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + m.content + "
    "'[/INST]' }}{%- else %}{{- '[INST] ' + m.content + '[/INST]' }}{%- endif %}{%- else %}"
    "{{- ' ' + m.content | trim + eos_token }}{%- endif %}{%- endfor %}",
    "dated": "{% if strftime_now is defined %}{% set year = strftime_now('%Y') | length %}"
    "{% endif %}{{ bos_token }}Digits of the year: {{ year }}\n" + _CHATML,
    "gemma": "{{ bos_token }}" + _SYSTEM_APART + "{% for m in rest %}{% set role = 'model' if "
    "m.role == 'assistant' else m.role %}{{ '<start_of_turn>' + role + '\n' }}{% if loop.first and "
    "system %}{{ system + '\n\n' }}{% endif %}{{ m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}" + _ASKS + "<start_of_turn>model\n{% endif %}",
    "deepseek": "{% set ns = namespace(first=true, system='') %}{%- for m in messages %}"
    "{%- if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{%- endif %}"
    "{%- endfor %}{{ bos_token }}{{ ns.system }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{{ '<|user|>' + m.content }}{%- endif %}{%- if m.role == 'assistant' %}{% set text = m.content"
    " %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|assistant|>' + text + eos_token }}{%- endif %}{%- endfor %}" + _ASKS
    + "{{ '<|assistant|><think>\n' }}{% endif %}",
    "qwen": "{%- if tools %}\n    {{- 'tools: ' + tools | tojson }}\n{%- else %}\n    {%- if "
    "messages[0].role == 'system' %}\n        {{- '<|im_start|>system\n' + messages[0].content + "
    "'<|im_end|>\n' }}\n    {%- endif %}\n{%- endif %}\n{%- set ns = namespace(last=messages|length"
    " - 1) %}\n{%- for m in messages[::-1] %}\n    {%- if m.role == 'user' and not "
    "m.content.startswith('<tool>') and ns.last == messages|length - 1 %}\n        {%- set ns.last "
    "= messages|length - 1 - loop.index0 %}\n    {%- endif %}\n{%- endfor %}\n{%- for m in messages"
    " %}\n    {%- set content = m.content if m.content is string else '' %}\n    {%- if m.role == "
    "'user' or (m.role == 'system' and not loop.first) %}\n        {{- '<|im_start|>' + m.role + "
    "'\n' + content + '<|im_end|>' + '\n' }}\n    {%- elif m.role == 'assistant' %}\n        {%- if"
    " '</think>' in content %}\n            {%- set reason = content.split('</think>')[0].rstrip("
    "'\n').split('<think>')[-1].lstrip('\n') %}\n            {%- set content = content.split("
    "'</think>')[-1].lstrip('\n') %}\n        {%- endif %}\n        {{- '<|im_start|>' + m.role + "
    "'\n' + content + '<|im_end|>\n' }}\n    {%- endif %}\n{%- endfor %}\n{%- if "
    "add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n    {%- if enable_thinking is "
    "defined and enable_thinking is false %}\n        {{- '<think>\n\n</think>\n\n' }}\n"
    "    {%- endif %}\n{%- endif %}",
    "openchat": "{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m['role'].title() + "
    "': ' + m['content'] + '<|end_of_turn|>'}}{% endfor %}" + _ASKS
    + "{{ 'GPT4 Correct Assistant:' }}{% endif %}",
    "guanaco": "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% else %}"
    "{{ '### ' + {'user': 'Human', 'assistant': 'Assistant'}[m.role] + ': ' + m.content }}"
    "{% endif %}\n\n{% endfor %}" + _ASKS + "### Assistant:{% endif %}",
    "dolly": "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
    "### Response:\n{% elif m.role == 'assistant' %}{{ m.content }}\n\n### End\n\n{% else %}"
    "{{ m.content ~ '\n\n' }}{% endif %}{% endfor %}",
    "open-assistant": "{% for m in messages %}{% if m.role == 'user' %}<|prompter|>"
    "{% else %}<|{{ m.role }}|>{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}" + _ASKS
    + "<|assistant|>{% endif %}",
    "bloomz": "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}"
    "{{ '\n' if not loop.last else ' ' }}{% endfor %}",
    "redpajama": "{% for m in messages %}{% if m.role == 'user' %}<human>{% elif m.role == "
    "'assistant' %}<bot>{% else %}<system>{% endif %}: {{ m.content }}\n{% endfor %}" + _ASKS
    + "<bot>:{% endif %}",
    "dialogpt": "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}",
    "gpt4all": _SYSTEM_APART + "{{ system | default('Be helpful.', true) }}\n{% for m in rest %}"
    "{{ ('### Prompt:\n%s\n' if m.role == 'user' else '### Response:\n%s\n') | format(m.content) }}"
    "{% endfor %}" + _ASKS + "### Response:\n{% endif %}",
    "granite": "{%- if documents %}{{ documents | tojson(indent=1) }}{%- endif %}{%- if tools is "
    "not none %}tools{%- endif %}{%- for m in messages %}{{- '<|start_header_id|>' ~ m['role'] ~ "
    "'<|end_header_id|>' ~ m['content'] ~ '<|eot_id|>\n' }}{%- if loop.last and "
    "add_generation_prompt %}{{- '<|start_header_id|>assistant' }}{{- '<|end_header_id|>' }}"
    "{%- endif %}{%- endfor %}",
    "macros": "{%- macro say(role, text) -%}\n<|im_start|>{{ role }}\n{{ text }}<|im_end|>\n"
    "{%- endmacro -%}\n{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'system'"
    " %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{% if ns.n > 4 %}{% break %}{% endif %}"
    "{{ say(m.role, m.content) }}\n{% endfor %}{{ ns.n }} turns\n{{ messages[0].content }}\n"
    "{{ messages[-1].content }}<|im_start|>assistant\n",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% generation %}\n{{ m.content }}<|end|>\n{% endgeneration %}{% else %}<|{{ m.role }}|>"
    "{{ m.content }}<|end|>\n{% endif %}{% endfor %}" + _ASKS + "<|assistant|>{% endif %}",
    "json": "{% for m in messages %}{{ m.role | tojson }}: {{ m.content | tojson("
    "ensure_ascii=loop.first) }} {{ m | tojson(separators=(',', ':'), sort_keys=True) }}\n"
    "{% endfor %}" + _ASKS + "{{ {'b': [1, none], 'a': '<é>'} | tojson(indent=2) }}{% endif %}",
    "tokens": "{{ [bos_token, eos_token, unk_token, pad_token, mask_token] | join(' ') }}"
    "{{ sep_token }}{{ cls_token is defined }}{% for m in messages %}{{ m.content | upper }}"
    "{{ m.content | length }}{{ m.content[:3] }}{{ m.content | replace('e', '<|end|>') }}"
    "{{ m.content.lower() | capitalize }}{{ m.content | title }}{{ m.content | reverse }}"
    "{{ m.content.splitlines() | join('|') }}{{ m.content.split() | length }}\n{% endfor %}",
    "joined": "{% set parts = [] %}{% for m in messages %}{% set parts = parts + ['<|im_start|>' ~ "
    "m.role, m.content.partition(' ')[2], '<|im_end|>'] %}{{ parts | join('\n') }}{% endfor %}"
    "{% filter upper %}<|end|>{{ messages[0].content }}{% endfilter %}{% set block %}<s>"
    "{{ messages[-1].content * 2 }}</s>{% endset %}{{ block | trim }}{{ '%-9s|%d%%' % ('a', 5) }}",
}  # fmt: skip

_TURNS = [["user", "Who is Emma?"], ["assistant", " A lady of Highbury. "], ["user", "And he?"]]
CONVERSATIONS = {
    "one": [["user", "Hello"]],
    "turns": _TURNS,
    "system": [["system", "You are Jane. "], *_TURNS],
    "empty": [["system", ""], ["user", ""], ["assistant", ""], ["user", "?"]],
    "blanks": [["user", " \n a\n\n b \t"], ["assistant", "\n"], ["user", "  two  spaces "]],
    "letters": [["user", "Grüße, 東京 ﬁ ß İ 🙂"], ["assistant", "“Où?” 'a' \"b\" \\n <&>"],
                ["user", "{{ 1 }} {% x %} %s {}"]],
    "thought": [["system", "S"], ["user", "2+2"], ["assistant", "hm\n\nIt is\n4"],
                ["user", "Thanks"], ["assistant", "You're welcome"], ["user", "Bye\nnow"]],
}  # fmt: skip


def checkpoint_folder(folder: Path) -> Path:
    """A copy of the bundled checkpoint whose vocabulary has :data:`SPECIAL`."""
    shutil.copytree(REPOSITORY / "models/bundled/austen-6m", folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    model, n = data["model"], len(SPECIAL)
    kept = sorted(model["vocab"], key=model["vocab"].__getitem__)[:-n]
    model["vocab"] = {text: i for i, text in enumerate([*kept, *SPECIAL])}
    model["merges"] = model["merges"][:-n]
    data["added_tokens"] += [
        {**data["added_tokens"][0], "id": len(kept) + i, "content": text}
        for i, text in enumerate(SPECIAL)
    ]
    path.write_text(json.dumps(data), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def gguf_of(folder: Path) -> Path:
    """The checkpoint as a GGUF file beside it."""
    from infer_os.convert.pipeline import convert
    from infer_os.convert.settings import ConvertSettings

    path = folder.with_suffix(".gguf")
    convert(ConvertSettings(folder, path, "q4_0"))
    return path


def written(vocab: Any, template: str, conversation: list[list[str]]) -> tuple[str, list[int]]:
    """The text and the tokens that we make of a conversation that asks for a reply."""
    from infer_os.runtime.chat.frame import Message
    from infer_os.runtime.chat.rendering import Conversation, Rendering, render
    from infer_os.runtime.chat.template import TemplateFrame

    frame = TemplateFrame(template, vocab)
    messages = [Message(role, text) for role, text in conversation]
    (rendering,) = render(template, frame.variables, [Conversation(tuple(messages), True)])
    assert isinstance(rendering, Rendering), rendering
    # as it is, also where the system prompt would be merged with a message
    frame.merges_system = False
    return rendering.text, frame.written_tokens(messages)
