"""Answers in generated text: finding them, comparing them, voting over them.

Extraction follows the test-time foundation: mathematical answers through math-verify (boxed first,
then the last match), letters of multiple-choice options through m1's chain (arXiv 2504.00869) but
without its last, fuzzy step, which turns any garbage into an option (`matcher="official"` keeps
it). Votes compare by equivalence with the first member of each group, never by string equality
alone, and an answer that could not be found (None) never wins while another one exists.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from random import Random
from typing import Literal, get_args

from outlay.errors import DependencyError, InputError
from outlay.evals.mathguard import GUARD
from outlay.evals.metrics import normalise_answer

AnswerKind = Literal["math", "choice", "number", "text", "custom"]
Matcher = Literal["strict", "official"]
Tie = Literal["earliest", "random"]
Equivalent = Callable[[str, str], bool]

_LONGEST = 20_000  # characters looked at, from the end: the answer comes last
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?:\s*/\s*\d+)?(?![\w])"
    r"|(?<![\w.])[-+]?\.\d+(?![\w])"
)
_ARTICLE = r"[AI]\s+[a-z]"  # "A" before a small letter is an article, "I" a pronoun
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_ANSWER_LINE = re.compile(r"^[ \t*#>_]*(?:final )?answer[ \t*_]*[:=][ \t*]*", re.I | re.M)
_ANSWER_IS = re.compile(r"\banswer(?:\s+is|\s*:)\s*:?\s*", re.IGNORECASE)


def boxed(text: str) -> str | None:
    """Content of the last `\\boxed{...}` (else `\\fbox{...}`) with balanced braces, unwrapped of
    `\\text{...}`; None if there is none."""
    for command in ("\\boxed{", "\\fbox{"):
        at = text.rfind(command)
        while at >= 0:
            depth, start = 1, at + len(command)
            for end in range(start, len(text)):
                depth += {"{": 1, "}": -1}.get(text[end], 0)
                if depth == 0:
                    inner = text[start:end].strip()
                    wrapped = re.fullmatch(r"\\(?:text|textbf|mathrm)\{(.*)\}", inner, re.DOTALL)
                    return (wrapped[1] if wrapped else inner).strip()
            at = text.rfind(command, 0, at)
    return None


def after_answer(text: str) -> str:
    """The part of a reply that begins with the answer: the content of the last `<answer>` tag or
    box, else everything after the last "Answer:" at a line's start, else the rest of the line after
    the last "answer is", else the whole reply.

    A thinking part that ends with `</think>` is left out first.
    """
    text = text.rsplit("</think>", 1)[-1][-_LONGEST:]
    if tags := _TAG.findall(text):
        return str(tags[-1])
    if (inner := boxed(text)) is not None:
        return inner
    if lines := list(_ANSWER_LINE.finditer(text)):
        return text[lines[-1].end() :]
    if said := list(_ANSWER_IS.finditer(text)):
        return text[said[-1].end() :].split("\n")[0].strip().rstrip(".").strip("*` ")
    return text


def final_answer(text: str) -> str:
    """`after_answer` up to the first blank line: a model that goes on after its answer is cut."""
    return re.split(r"\n\s*\n", after_answer(text).strip())[0].strip()


def extract(
    text: str,
    kind: AnswerKind,
    *,
    options: Sequence[str] = (),
    matcher: Matcher = "strict",
    custom: Callable[[str], str | None] | None = None,
) -> str | None:
    """The answer in `text` in a canonical form, None if there is none.

    Args:
        text: a generated reply.
        kind: "math" (LaTeX or expression), "choice" (a letter), "number" (a plain number or
            fraction, canonical), "text" (see `final_answer`), "custom" (what `custom` returns).
        options: texts of the options, for "choice"; without them letters A to J count.
        matcher: for "choice"; "official" adds m1's fuzzy last step.
        custom: the extractor of kind "custom".

    Raises:
        InputError: for a text that is no string, an unknown kind, or bad options.
    """
    _check_kind(kind)
    if not isinstance(text, str):
        raise InputError(f"text={text!r} is not a string; give the generated reply")
    if kind == "custom":
        if custom is None:
            raise InputError("kind='custom' needs custom=, a function from reply to answer")
        return custom(text)
    if kind == "choice":
        return extract_choice(text, options, matcher=matcher)
    if kind == "number":
        return extract_number(text)
    if kind == "math":
        tail = text.rsplit("</think>", 1)[-1][-_LONGEST:]
        return GUARD.extract(tail) if tail.strip() else None
    return final_answer(text) or None


def extract_number(text: str) -> str | None:
    """The last number of the final answer, canonical: "1,250.0" → "1250", "2/4" → "1/2"."""
    found = _NUMBER.findall(final_answer(text).replace("\N{MINUS SIGN}", "-"))
    found = found or _NUMBER.findall(text[-_LONGEST:].replace("\N{MINUS SIGN}", "-"))
    value = _fraction(found[-1]) if found else None
    return None if value is None else str(value)


def _fraction(text: str) -> Fraction | None:
    try:
        return Fraction(re.sub(r"[,\s]", "", text))
    except (ValueError, ZeroDivisionError):
        return None


def extract_choice(
    text: str, options: Sequence[str] = (), *, matcher: Matcher = "strict"
) -> str | None:
    """The letter of the option that a reply takes, None if it takes none.

    In order: the last box (letter, option text or "L. text"); the whole reply, if it is one of
    these; the text after "## Final Response" from here on, if there is one; the last "answer is X";
    the last isolated capital letter; the option text that occurs last; with matcher="official" the
    most similar option.

    Raises:
        InputError: for fewer than two, more than 26 or duplicate options, or an unknown matcher.
        DependencyError: for matcher="official" without rapidfuzz.
    """
    if matcher not in get_args(Matcher):
        raise InputError(f"matcher={matcher!r}; choose one of {', '.join(get_args(Matcher))}")
    texts = [option.strip().casefold() for option in options]
    if options:
        if not 2 <= len(texts) <= len(_LETTERS):
            raise InputError(f"{len(texts)} options; give 2 to {len(_LETTERS)}")
        if len(set(texts)) < len(texts) or "" in texts:
            raise InputError("options hold an empty or a duplicate text; make them distinct")
    letters = _LETTERS[: len(texts) or 10]
    text = text.rsplit("</think>", 1)[-1][-_LONGEST:]
    inner = boxed(text)
    for whole in (None if inner is None else inner.split("=")[-1], text):
        if whole is not None and (letter := _whole_option(whole, letters, texts)):
            return letter
    text = text.rsplit("## Final Response", 1)[-1]
    for said in reversed(list(_ANSWER_IS.finditer(text))):
        if letter := _leading_option(text[said.end() :], letters, texts):
            return letter
    if alone := re.findall(rf"(?<![\w'])(?!{_ARTICLE})([{letters}])(?![\w'])", text):
        return str(alone[-1])
    folded = text.casefold()
    ends = [
        max((m.end() for m in re.finditer(_words(option), folded)), default=-1) for option in texts
    ]
    if ends and max(ends) >= 0:
        # Of options that end at the same place the longer is meant ("acid" in "folic acid").
        best = max(range(len(ends)), key=lambda i: (ends[i], len(texts[i])))
        return letters[best]
    return _most_similar(folded, letters, texts) if matcher == "official" and texts else None


def _words(option: str) -> str:
    left = r"(?<!\w)" if option[0].isalnum() else ""
    right = r"(?!\w)" if option[-1].isalnum() else ""
    return left + re.escape(option) + right


def _whole_option(text: str, letters: str, texts: Sequence[str]) -> str | None:
    bare = text.strip().strip("*`$").strip()
    if bare.casefold() in texts:
        return letters[texts.index(bare.casefold())]
    short = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", bare)
    if short and short[1].upper() in letters:
        return short[1].upper()
    named = re.fullmatch(r"\(?([A-Za-z])\)?[.:)]?\s+(.+)", bare, re.DOTALL)
    if named and named[1].upper() in letters:
        letter = named[1].upper()
        rest = named[2].strip().rstrip(".").casefold()
        if texts and rest == texts[letters.index(letter)].rstrip("."):
            return letter
    return None


def _leading_option(rest: str, letters: str, texts: Sequence[str]) -> str | None:
    """The option that text after "answer is" begins with."""
    bare = rest.lstrip("*`$ (\"'").removeprefix("option ").lstrip("(")
    starting = [i for i, option in enumerate(texts) if re.match(_words(option), bare.casefold())]
    if starting:
        return letters[max(starting, key=lambda i: len(texts[i]))]
    letter = re.match(rf"(?!{_ARTICLE})([A-Z])(?![\w'])|([a-z])(?=\s*(?:[).,;:*]|$))", bare)
    found = (letter[1] or letter[2]).upper() if letter else ""
    return found if found and found in letters else None


def _most_similar(text: str, letters: str, texts: Sequence[str]) -> str:
    try:
        from rapidfuzz import fuzz
    except ImportError as error:
        raise DependencyError(
            "matcher='official' needs rapidfuzz; pip install 'outlay[eval]'"
        ) from error
    scores = [fuzz.ratio(text, option) for option in texts]
    return letters[scores.index(max(scores))]


def equivalent(
    gold: str, answer: str, kind: AnswerKind, *, custom: Equivalent | None = None
) -> bool:
    """Whether two extracted answers mean the same; `gold` (the representative) comes first.

    Raises:
        InputError: for an unknown kind, or kind "custom" without `custom`.
    """
    _check_kind(kind)
    if kind == "custom":
        if custom is None:
            raise InputError("kind='custom' needs custom=, a comparison of two answers")
        return custom(gold, answer)
    if gold == answer:
        return True
    if kind == "choice":
        return gold.strip().upper() == answer.strip().upper()
    if kind == "text":
        return normalise_answer(gold) == normalise_answer(answer)
    one, other = _fraction(gold), _fraction(answer)
    if kind == "number" or (
        one is not None and other is not None and _whole(one) and _whole(other)
    ):
        return one is not None and one == other
    return GUARD.equivalent(gold, answer)


def _whole(value: Fraction) -> bool:
    return value.denominator == 1


def _check_kind(kind: str) -> None:
    if kind not in get_args(AnswerKind):
        raise InputError(f"kind={kind!r}; choose one of {', '.join(get_args(AnswerKind))}")


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote over N answers.

    Args:
        value: the winning answer, as its group's first member gave it; None if all are None.
        index: the answer that represents it.
        groups: indices of the answers by group, in order of appearance.
        weights: one per group.
    """

    value: str | None
    index: int
    groups: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]


def group(
    answers: Sequence[str | None], kind: AnswerKind, *, custom: Equivalent | None = None
) -> list[list[int]]:
    """Indices of equivalent answers, in order of appearance; all None form one group.

    Each answer is compared with the first member of every group: math-verify's equivalence is
    neither symmetric nor transitive, so the order of comparison is fixed.

    Raises:
        InputError: for no answers or an unknown kind.
    """
    _check_kind(kind)
    if not answers:
        raise InputError("no answers to vote over; give at least one")
    groups: list[list[int]] = []
    known: dict[str | None, list[int]] = {}
    for index, answer in enumerate(answers):
        place = known.get(answer)
        if place is None and answer is not None:
            for members in groups:
                first = answers[members[0]]
                if first is not None and equivalent(first, answer, kind, custom=custom):
                    place = members
                    break
        if place is None:
            place = []
            groups.append(place)
        place.append(index)
        known[answer] = place
    return groups


def majority(
    answers: Sequence[str | None],
    kind: AnswerKind,
    *,
    custom: Equivalent | None = None,
    tie: Tie = "earliest",
    seed: int = 0,
) -> Vote:
    """The most frequent answer; ties go to the group that appeared first, or to a random one."""
    groups = group(answers, kind, custom=custom)
    return _decide(answers, groups, [float(len(members)) for members in groups], tie, seed)


def weighted(
    answers: Sequence[str | None],
    scores: Sequence[float],
    kind: AnswerKind,
    *,
    custom: Equivalent | None = None,
    tie: Tie = "earliest",
    seed: int = 0,
) -> Vote:
    """The answer with the largest sum of scores; equal scores give the majority.

    Raises:
        InputError: for scores that are negative, not finite, or not one per answer.
    """
    _check_scores(answers, scores)
    groups = group(answers, kind, custom=custom)
    # fsum is exact, so the order of the samples cannot change a sum.
    weights = [math.fsum(scores[i] for i in members) for members in groups]
    return _decide(answers, groups, weights, tie, seed)


def naive(
    answers: Sequence[str | None],
    scores: Sequence[float],
    kind: AnswerKind,
    *,
    custom: Equivalent | None = None,
    tie: Tie = "earliest",
    seed: int = 0,
) -> Vote:
    """The answer of the single best score (best-of-N); a group weighs as its best member."""
    _check_scores(answers, scores)
    groups = group(answers, kind, custom=custom)
    weights = [max(scores[i] for i in members) for members in groups]
    vote = _decide(answers, groups, weights, tie, seed)
    members = next(m for m in vote.groups if m[0] == vote.index)
    best = max(members, key=lambda i: scores[i])
    return Vote(answers[best], best, vote.groups, vote.weights)


def _check_scores(answers: Sequence[str | None], scores: Sequence[float]) -> None:
    if len(answers) != len(scores):
        raise InputError(f"{len(scores)} scores for {len(answers)} answers; give one each")
    for index, score in enumerate(scores):
        if not math.isfinite(score) or score < 0:
            raise InputError(f"score {index} is {score}; scores must be finite and >= 0")


def _decide(
    answers: Sequence[str | None],
    groups: list[list[int]],
    weights: list[float],
    tie: Tie,
    seed: int,
) -> Vote:
    if tie not in get_args(Tie):
        raise InputError(f"tie={tie!r}; choose one of {', '.join(get_args(Tie))}")
    found = [g for g, members in enumerate(groups) if answers[members[0]] is not None]
    candidates = found or list(range(len(groups)))
    top = max(weights[g] for g in candidates)
    tied = [g for g in candidates if weights[g] == top]
    winner = tied[0] if tie == "earliest" else Random(seed).choice(tied)
    first = groups[winner][0]
    return Vote(answers[first], first, tuple(map(tuple, groups)), tuple(weights))
