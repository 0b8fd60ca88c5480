"""What Curriculum GRPO writes into prompts and reads from completions: budgets and tag pairs.

The prompt and the format signal of "Train Long, Think Short" (arXiv 2508.08940, section 3). The
words of the prompt are ours; its parts are the paper's: two roles, the rule to think first and
answer then, a one-line schema, an emphasised sentence with the budget, the question.

No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outlay.errors import BudgetError, InputError

PREAMBLE = (
    "A user asks the assistant a question, and the assistant solves it. The assistant first thinks "
    "about how to solve it and then gives the user the answer."
)
LONGEST = 1_000_000  # characters of a completion that are searched for tags
_UNLIMITED = 1_000_000_000  # tokenizers without a limit say more than this


@dataclass(frozen=True)
class Tags:
    """The tag pairs around thinking and answer.

    Args:
        think: what opens and closes the thinking.
        answer: what opens and closes the answer.
        opened: the prompt has opened the thinking already; None sees it in prompts that are text,
            and takes chats for not opened.

    Raises:
        InputError: for tags that are empty or not four different texts.
    """

    think: tuple[str, str] = ("<think>", "</think>")
    answer: tuple[str, str] = ("<answer>", "</answer>")
    opened: bool | None = None

    def __post_init__(self) -> None:
        four = (*self.think, *self.answer)
        if len(four) != 4 or len(set(four)) != 4 or not all(four):
            raise InputError(
                f"tags think={self.think}, answer={self.answer}: give two different texts each, "
                "none of them empty"
            )

    def found(self, text: str) -> tuple[bool, bool]:
        """Whether the thinking and the answer are well-formed.

        A pair is well-formed if both its tags occur exactly once, the opening one first, and its
        span does not intersect that of the other pair. Order of the pairs and emptiness do not
        matter.

        Args:
            text: of a completion; what a prompt opened put before it.
        """
        think, answer = _span(text, self.think), _span(text, self.answer)
        if think and answer and think[0] < answer[1] and answer[0] < think[1]:
            return False, False
        return think is not None, answer is not None

    def schema(self) -> str:
        """The rule and the line that shows how a response looks."""
        (a, b), (c, d) = self.think, self.answer
        return (
            f"The thinking stands between {a} and {b}, the answer between {c} and {d}: "
            f"{a} thinking here {b} {c} answer here {d}."
        )

    def text_template(self) -> str:
        """Of prompts that are text, with `{budget}` and `{question}`."""
        return f"{PREAMBLE} {self.schema()} {_DEMAND}\nUser: {{question}}\nAssistant:"

    def chat_template(self) -> str:
        """Of the last user message of a chat, with `{budget}` and `{question}`."""
        return f"{{question}}\n\nThink first, then answer. {self.schema()} {_DEMAND}"

    def check(self, tokenizer: Any) -> None:
        """Raise `InputError` unless the tokenizer gives the tags back as they are."""
        for tag in (*self.think, *self.answer):
            back = decode(tokenizer, encode(tokenizer, tag))
            if back.strip() != tag.strip():
                raise InputError(
                    f"tag {tag!r} comes back from the tokenizer as {back!r}; add it to the "
                    "vocabulary, choose others with tags=Tags(...), or use fmt='verifier'"
                )


_DEMAND = "**Use exactly {budget} tokens.**"


def render(template: str, question: str, budget: int) -> str:
    """A template with its budget and question; a question that holds braces stays as it is.

    Args:
        template: with `{question}` once and `{budget}`.
        question: as it was asked.
        budget: whole tokens.
    """
    before, after = template.split("{question}")
    return (
        before.replace("{budget}", str(budget)) + question + after.replace("{budget}", str(budget))
    )


def check_template(template: str) -> None:
    """Raise `InputError` unless a template asks the question once and names the budget."""
    if template.count("{question}") != 1 or "{budget}" not in template:
        raise InputError(
            f"template={template!r} needs {{question}} once and {{budget}}; or set "
            "budget_in_prompt=False"
        )


def told(prompt: Any, text_template: str, chat_template: str, budget: int) -> Any:
    """A prompt, text or chat, that names its budget. The prompt given is not changed.

    Args:
        prompt: a text, or messages of which one is the user's.
        text_template: for texts.
        chat_template: for the last message of the user.
        budget: whole tokens.

    Raises:
        InputError: for a chat without a text of the user.
    """
    if isinstance(prompt, str):
        return render(text_template, prompt, budget)
    messages = [dict(message) for message in prompt]
    for message in reversed(messages):
        if message.get("role") == "user" and isinstance(message.get("content"), str):
            message["content"] = render(chat_template, message["content"], budget)
            return messages
    raise InputError(
        "a prompt has no text of the user into which the budget could be written; set "
        "budget_in_prompt=False"
    )


def check_spelling(tokenizer: Any, text: str) -> None:
    """Raise `InputError` if a tokenizer loses characters of `text`."""
    ids = encode(tokenizer, text)
    back = decode(tokenizer, ids)
    unknown = getattr(tokenizer, "unk_token_id", None)
    if (unknown is not None and unknown in ids) or "".join(back.split()) != "".join(text.split()):
        raise InputError(
            f"the tokenizer cannot spell the prompt's template: {text[:60]!r}... comes back as "
            f"{back[:60]!r}...; give a template in its vocabulary, or budget_in_prompt=False"
        )


def check_context(
    tokenizer: Any, prompts: Sequence[Any], cap: int | None, context: int | None
) -> None:
    """Raise `BudgetError` if a prompt and a capped completion exceed the context.

    Args:
        tokenizer: of the model.
        prompts: texts or chats.
        cap: most tokens of a completion; None for no check.
        context: most tokens in all; None takes the tokenizer's limit, if it has one.
    """
    limit = context
    if limit is None:
        limit = int(getattr(tokenizer, "model_max_length", _UNLIMITED))
    if cap is None or limit >= _UNLIMITED:
        return
    longest = max(prompt_length(tokenizer, prompt) for prompt in prompts)
    if longest + cap > limit:
        raise BudgetError(
            f"a prompt of {longest} tokens and a cap of {cap} exceed the context of {limit}; "
            "lower b0, hard_cap_factor or answer_slack"
        )


def prompt_length(tokenizer: Any, prompt: Any) -> int:
    """Tokens of a prompt, text or chat."""
    if isinstance(prompt, str):
        return len(tokenizer(prompt)["input_ids"])
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    return len(encode(tokenizer, text))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text, without any that the tokenizer adds.

    Raises:
        InputError: if the tokenizer has no tokens for it.
    """
    try:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    except Exception as error:  # tokenizers raises Exception itself
        raise InputError(
            f"the tokenizer cannot spell {text[:60]!r} ({error}); use words of its vocabulary, "
            "or budget_in_prompt=False and fmt='verifier'"
        ) from error


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of tokens, special ones included."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def _span(text: str, pair: tuple[str, str]) -> tuple[int, int] | None:
    """Start and end of a pair that occurs exactly once, the opening tag first."""
    if text.count(pair[0]) != 1 or text.count(pair[1]) != 1:
        return None
    start, close = text.index(pair[0]), text.index(pair[1])
    return (start, close + len(pair[1])) if start + len(pair[0]) <= close else None
