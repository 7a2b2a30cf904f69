"""Token ids of instructions and answers, with the length of each prompt.

A template is the JSON of Alpaca-LoRA: `prompt_input` with {instruction} and {input}, `prompt_no_input` with {instruction}. `PromptRules`
are a protocol's changes to it.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from qgoft.errors import QgoftError, check_choice
from qgoft.pocket.language.knowledge import TEMPLATE
from qgoft.tasks.cache import cached_rows

# Increment if reading or tokenisation in this module changes, to invalidate cached rows.
ROWS_VERSION = 2
IGNORE_INDEX = -100


@dataclass(frozen=True)
class PromptRules:
    """Differences of a protocol's prompts from the template.

    Attributes:
        response: `newline` keeps the template's end; `glued` strips it, so that the answer directly follows "### Response:" (MetaMath).
        first_line: use the first line of an instruction as the instruction and the others as its input (MetaMath).
        input: `section` puts the input where the template has it; `appended` puts it on a line after the instruction, in the prompt
            without input (LLaMA-Factory's alpaca template).

    Raises:
        QgoftError: an unknown value.
    """

    response: str = "newline"
    first_line: bool = False
    input: str = "section"

    def __post_init__(self) -> None:
        check_choice("task.options.train_prompt.response", self.response, ["newline", "glued"], "change it")
        check_choice("task.options.train_prompt.input", self.input, ["section", "appended"], "change it")


def prompt_rules(options: dict[str, Any]) -> PromptRules:
    """Read the rules from the options of a task.

    Raises:
        QgoftError: an unknown rule or value.
    """
    given = options.get("train_prompt") or {}
    for name in given:
        check_choice("task.options.train_prompt", name, [rule.name for rule in fields(PromptRules)], "rename or remove it")
    return PromptRules(**given)


@dataclass(frozen=True)
class Template:
    """Text around an instruction."""

    with_input: str
    without_input: str
    rules: PromptRules = PromptRules()

    def prompt(self, instruction: str, text: str = "") -> str:
        if self.rules.first_line and not text:
            instruction, _, text = instruction.partition("\n")
        if self.rules.input == "appended" and text:
            instruction, text = f"{instruction}\n{text}", ""
        prompt = self._fill(instruction, text)
        return prompt.rstrip() if self.rules.response == "glued" else prompt

    def test_prompt(self, question: str) -> str:
        """Return the prompt of a test question, which is not split (MetaMath splits only training queries)."""
        return replace(self, rules=replace(self.rules, first_line=False)).prompt(question)

    def _fill(self, instruction: str, text: str) -> str:
        form = self.with_input if text else self.without_input
        # str.format cannot be used: an instruction may hold braces.
        head, tail = form.split("{instruction}")
        return (head + instruction + tail.replace("{input}", text)) if text else head + instruction + tail


def read_template(path: Path | None, rules: PromptRules | None = None) -> Template:
    """Read the template of a file, or return that of the embedded decoder.

    Raises:
        QgoftError: the file is not such a JSON.
    """
    try:
        data = TEMPLATE if path is None else json.loads(path.read_text("utf-8"))
        template = Template(data["prompt_input"], data["prompt_no_input"], rules or PromptRules())
        whole = template.with_input.count("{instruction}") == template.without_input.count("{instruction}") == 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise QgoftError(
            f"{path} is not a prompt template ({type(error).__name__}: {error}); expected prompt_input and prompt_no_input"
        ) from error
    if not whole or "{input}" not in template.with_input:
        raise QgoftError(f"{path}: prompt_input needs {{instruction}} and {{input}}, prompt_no_input needs {{instruction}}, each once")
    return template


def training_rows(
    rows: Dataset,
    columns: dict[str, str],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    depends_on: dict[str, Any],
) -> tuple[Dataset, dict[str, int]]:
    """Return token ids of prompt, answer and end-of-text with the number of prompt tokens, and counts of problems in the rows.

    Args:
        columns: columns of the instruction, the answer (output), and the input, if any.
        depends_on: identity of the rows and the tokenizer, for the cache.

    Returns:
        Columns input_ids, prompt (its length) and damage; rows are truncated to max_length.
    """

    def write(path: Path) -> None:
        features = Features({"input_ids": List(Value("int32")), "prompt": Value("int32"), "damage": Value("string")})
        rows.map(
            encode, batched=True, remove_columns=rows.column_names, features=features, cache_file_name=str(path), new_fingerprint="tokens"
        )

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        inputs = batch[columns["input"]] if "input" in columns else [""] * len(batch[columns["output"]])
        pairs = zip(batch[columns["instruction"]], inputs, batch[columns["output"]], strict=True)
        encoded = [encode_pair(template.prompt(instruction, text), answer, tokenizer, max_length) for instruction, text, answer in pairs]
        ids, prompts, damages = zip(*encoded, strict=True)
        return {"input_ids": list(ids), "prompt": list(prompts), "damage": list(damages)}

    rules = [] if template.rules == PromptRules() else [asdict(template.rules)]
    everything = {
        **depends_on,
        "prompts": [ROWS_VERSION, columns, template.with_input, template.without_input, max_length, *rules],
        "libraries": [version("tokenizers"), version("transformers")],
    }
    made = cached_rows(everything, write)
    counts = Counter(DAMAGES[damage] for damage in made["damage"] if damage)
    return made.select([i for i, damage in enumerate(made["damage"]) if damage != NO_ROOM]), dict(counts)


CUT, NO_ROOM, EMPTY = "cut", "no_room", "empty"  # as cached
DAMAGES = {
    CUT: "answers cut at the length",
    NO_ROOM: "rows left out: the prompt fills the length",
    EMPTY: "empty answers, of which the end token is learnt",
}


def encode_pair(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[list[int], int, str]:
    """Tokenise prompt and answer together, so that tokens join as in running text, and append the end; a token of both counts as prompt."""
    encoded = tokenizer(prompt + answer, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    end = tokenizer.eos_token_id
    if ids and ids[-1] == end:
        ids = ids[:-1]
    # Special tokens have empty offsets; the one at the start belongs to the prompt.
    count = next((i for i, (start, stop) in enumerate(offsets[: len(ids)]) if stop > start and start >= len(prompt)), len(ids))
    ids.append(end)
    if len(ids) <= max_length:
        return ids, count, "" if answer.strip() else EMPTY
    return ids[:max_length], min(count, max_length), CUT if count < max_length else NO_ROOM
