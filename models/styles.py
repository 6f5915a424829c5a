"""Prompt styles: how a conversation becomes one text, for models that only continue text.

The frames are those that each model was trained with; a comment at each style says where it was
published. :mod:`infer_os.runtime.chat.frame` turns them into tokens.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """The frame around each message.

    A turn is ``user`` with the message in place of ``{text}``, then ``assistant``, after
    which the model writes until one of ``stops`` or its end token; ``end`` closes its reply.
    ``system`` frames the text that opens the conversation; without one, ``opening`` is used.
    Special tokens of the vocabulary are spelled out and become those tokens. ``newline`` is what
    the model was trained to read and write instead of line breaks. ``markers`` are the special
    tokens that the vocabulary must have for the style to work.
    """

    name: str
    description: str
    system: str = "{text}\n\n"
    opening: str = ""
    user: str = "{text}"
    assistant: str = ""
    end: str = "\n"
    stops: tuple[str, ...] = ()
    newline: str = "\n"
    markers: tuple[str, ...] = ()

    @property
    def reply(self) -> str:
        """The frame of a reply that is given as text rather than written by the model.

        After a colon, models begin with a space, as their training texts do.
        """
        return " {text}" if self.assistant.endswith(":") else "{text}"


#: Two speakers, for base models, which know dialogues from their training texts.
DIALOGUE = PromptStyle(
    "dialogue",
    "User and Assistant, for base models",
    user="User: {text}\n",
    assistant="Assistant:",
    stops=("\nUser:", "\nAssistant:"),
)

#: No frame: the model continues what is typed.
PLAIN = PromptStyle("plain", "no frame: the model continues what is typed")

#: https://huggingface.co/microsoft/DialoGPT-large: every turn ends with the end token. There was
#: no system prompt in training; one becomes the first turn.
DIALOGPT = PromptStyle(
    "dialogpt",
    "DialoGPT: turns ended by <|endoftext|>",
    system="{text}<|endoftext|>",
    user="{text}<|endoftext|>",
    end="<|endoftext|>",
    markers=("<|endoftext|>",),
)

#: https://huggingface.co/databricks/dolly-v2-3b, instruct_pipeline.py; Dolly v1 alike.
INSTRUCTION = PromptStyle(
    "instruction",
    "Dolly: ### Instruction, ### Response",
    opening="Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n",
    user="### Instruction:\n{text}\n\n",
    assistant="### Response:\n",
    end="\n\n### End\n\n",
    stops=("### End", "### Instruction:"),
)

#: https://huggingface.co/nomic-ai/gpt4all-j; the frame as FastChat and its own bindings give it.
GPT4ALL = PromptStyle(
    "gpt4all",
    "GPT4All-J: ### Prompt, ### Response",
    system="### Instruction:\n{text}\n",
    opening="### Instruction:\nThe prompt below is a question to answer, a task to complete, or a "
    "conversation to respond to; decide which and write an appropriate response.\n",
    user="### Prompt:\n{text}\n",
    assistant="### Response:\n",
    stops=("### Prompt:", "### Response:", "### Instruction:"),
)

#: https://huggingface.co/OpenAssistant/oasst-sft-4-pythia-12b-epoch-3.5
OPEN_ASSISTANT = PromptStyle(
    "open-assistant",
    "OpenAssistant: <|prompter|> and <|assistant|>",
    system="<|system|>{text}<|endoftext|>",
    user="<|prompter|>{text}<|endoftext|>",
    assistant="<|assistant|>",
    end="<|endoftext|>",
    stops=("<|prompter|>", "<|assistant|>"),
    markers=("<|prompter|>", "<|assistant|>", "<|endoftext|>"),
)

#: https://huggingface.co/togethercomputer/RedPajama-INCITE-Chat-3B-v1 and GPT-NeoXT-Chat-Base-20B
HUMAN_BOT = PromptStyle(
    "human-bot",
    "RedPajama-INCITE-Chat, GPT-NeoXT: <human> and <bot>",
    system="{text}\n",
    user="<human>: {text}\n",
    assistant="<bot>:",
    stops=("<human>", "\n<bot>:"),
)

#: https://huggingface.co/stabilityai/stablelm-tuned-alpha-7b: its system prompt preceded
#: every conversation that it was trained on.
STABLELM = PromptStyle(
    "stablelm",
    "StableLM-tuned-alpha: <|USER|> and <|ASSISTANT|>",
    system="<|SYSTEM|>{text}\n",
    opening="<|SYSTEM|># StableLM Tuned (Alpha version)\n"
    "- StableLM is a helpful and harmless open-source AI language model developed by StabilityAI.\n"
    "- StableLM is excited to be able to help the user, but will refuse to do anything that could "
    "be considered harmful to the user.\n"
    "- StableLM is more than just an information source, StableLM is also able to write poetry, "
    "short stories, and make jokes.\n"
    "- StableLM will refuse to participate in anything that could harm a human.\n",
    user="<|USER|>{text}",
    assistant="<|ASSISTANT|>",
    end="",
    stops=("<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>"),
    markers=("<|USER|>", "<|ASSISTANT|>", "<|SYSTEM|>"),
)

#: https://huggingface.co/bigscience/bloomz-7b1: the bare instruction, which should make clear
#: where it stops; the answer ends with the end token.
BLOOMZ = PromptStyle(
    "bloomz",
    "BLOOMZ: the instruction alone, answers ended by </s>",
    system="{text}\n",
    end="</s>",
    markers=("</s>",),
)

#: https://huggingface.co/rinna/japanese-gpt-neox-3.6b-instruction-ppo: its tokenizer has no line
#: breaks; ``<NL>`` stands for them.
RINNA = PromptStyle(
    "rinna",
    "rinna's instruction models: ユーザー and システム",
    system="{text}<NL>",
    user="ユーザー: {text}<NL>",
    assistant="システム: ",
    end="<NL>",
    stops=("<NL>ユーザー:", "<NL>システム:"),
    newline="<NL>",
)

#: The same two speakers for Japanese base models.
JAPANESE = PromptStyle(
    "japanese",
    "ユーザー and システム, for Japanese base models",
    system="{text}\n",
    user="ユーザー: {text}\n",
    assistant="システム:",
    # a tokenizer without line breaks writes spaces instead
    stops=("ユーザー:", "システム:"),
)

#: https://huggingface.co/PygmalionAI/pygmalion-6b
PYGMALION = PromptStyle(
    "pygmalion",
    "Pygmalion: a persona (the system prompt), You and Assistant",
    system="Assistant's Persona: {text}\n<START>\n",
    opening="<START>\n",
    user="You: {text}\n",
    assistant="Assistant:",
    stops=("\nYou:", "\nAssistant:", "<START>"),
)

#: https://huggingface.co/HuggingFaceH4/starchat-beta: a system prompt, empty or not, always begins.
STARCHAT = PromptStyle(
    "starchat",
    "StarChat: <|system|>, <|user|> and <|assistant|>",
    system="<|system|>\n{text}<|end|>\n",
    opening="<|system|>\n<|end|>\n",
    user="<|user|>\n{text}<|end|>\n",
    assistant="<|assistant|>\n",
    end="<|end|>\n",
    stops=("<|end|>", "<|user|>"),
    markers=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
)

STYLES: dict[str, PromptStyle] = {
    style.name: style
    for style in (
        DIALOGUE, PLAIN, DIALOGPT, INSTRUCTION, GPT4ALL, OPEN_ASSISTANT, HUMAN_BOT, STABLELM,
        BLOOMZ, RINNA, JAPANESE, PYGMALION, STARCHAT,
    )
}  # fmt: skip

#: The style that stands for a file's own chat template.
TEMPLATE = "template"

#: Every name that ``--style`` takes.
STYLE_NAMES: tuple[str, ...] = (*STYLES, TEMPLATE)
