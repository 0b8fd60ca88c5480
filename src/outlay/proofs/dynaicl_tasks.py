"""Six small tasks of real and generated text that every Python can make, in two sets.

Set "a": the continent of a city (time zone names), the mood of a sentence, a hidden change of a
word. Set "b": the subject of a sentence from the standard library's documentation, the past tense
of a verb, a hidden change of a number. A hidden change can only be read off demonstrations; the
others say what they want. Every input has options, one of which is right.
"""

from __future__ import annotations

import importlib
import inspect
import random
import re
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from outlay.errors import InputError
from outlay.prompt.dynaicl.prompts import Example

TaskSet = Literal["a", "b"]
SETS: dict[TaskSet, tuple[str, ...]] = {
    "a": ("continent", "mood", "word"),
    "b": ("subject", "past", "number"),
}
TASKS = SETS["a"] + SETS["b"]
POOL = 16  # demonstrations of a task, or of one hidden change
INSTRUCTIONS = {
    "continent": "Name the continent of the city.",
    "mood": "Is the sentence positive or negative?",
    "word": "Change the word as in the examples.",
    "subject": "Which subject is the sentence about?",
    "past": "Give the past tense of the verb.",
    "number": "Change the number as in the examples.",
}

_CONTINENTS = ("Africa", "America", "Asia", "Australia", "Europe")
_SUBJECTS = {
    "mathematics": ("math", "cmath", "statistics", "fractions", "decimal", "random"),
    "files": ("os.path", "shutil", "pathlib", "tempfile", "zipfile", "tarfile"),
    "network": ("socket", "ssl", "ftplib", "smtplib", "imaplib", "urllib.request", "http.client"),
    "threads": ("threading", "queue", "multiprocessing.pool", "concurrent.futures", "asyncio"),
    "time": ("datetime", "calendar", "time", "sched", "zoneinfo"),
}
_MOODS = {
    "positive": "delightful excellent wonderful superb charming pleasant splendid perfect lovely "
    "brilliant impressive enjoyable refreshing fantastic flawless marvellous",
    "negative": "terrible awful dreadful horrible boring disgusting poor disappointing dull "
    "painful miserable annoying mediocre unbearable tedious useless",
}
_THINGS = "meal film hotel concert book service journey lecture game room"
_NOUNS = (
    "apple bird boat book bottle bridge cake camera candle car chair cloud coat cup desk dog door "
    "dream farm field finger flower forest friend garden gate girl guitar hand hill hat horse hour "
    "island jacket key king lake lamp letter map market mountain night ocean paper pencil picture "
    "planet plate river road rock roof school ship shoe song spoon star stone street table tiger "
    "tower town tree truck wall window winter word yard"
)
_PASTS = (
    "go went,see saw,take took,give gave,come came,begin began,break broke,choose chose,drive "
    "drove,eat ate,fall fell,feel felt,find found,fly flew,forget forgot,get got,grow grew,have "
    "had,hear heard,hold held,keep kept,know knew,leave left,lose lost,make made,meet met,run ran,"
    "say said,sell sold,send sent,sing sang,sit sat,speak spoke,spend spent,stand stood,steal "
    "stole,swim swam,teach taught,tell told,think thought,throw threw,understand understood,wake "
    "woke,wear wore,win won,write wrote,ask asked,call called,clean cleaned,cook cooked,dance "
    "danced,finish finished,help helped,jump jumped,laugh laughed,like liked,listen listened,look "
    "looked,love loved,move moved,open opened,paint painted,play played,rain rained,start started,"
    "talk talked,visit visited,wait waited,walk walked,want wanted,wash washed,"
    "watch watched,work worked"
)
_WORDS: tuple[Callable[[str], str], ...] = (
    str.upper,
    lambda word: word + "s",
    lambda word: f"{word} {word}",
    lambda word: word[0],
)
_NUMBERS: tuple[Callable[[int], int], ...] = (
    lambda n: n + 1,
    lambda n: n - 1,
    lambda n: n + 10,
    lambda n: 2 * n,
)
_Item = tuple[str, str, tuple[str, ...]]  # input, answer, options


@dataclass(frozen=True)
class Asked:
    """Inputs of all tasks with their pools and options.

    Args:
        inputs: with gold answers.
        kinds: (N,) the task of each, one of `TASKS`.
        pools: demonstrations by `Example.task`; hidden changes have one each.
        options: answers to choose from, by an input's text.
    """

    inputs: tuple[Example, ...]
    kinds: tuple[str, ...]
    pools: dict[str, tuple[Example, ...]]
    options: dict[str, tuple[str, ...]]


def _continents() -> list[_Item]:
    found = {}
    for zone in sorted(zoneinfo.available_timezones()):
        continent, _, city = zone.partition("/")
        if continent in _CONTINENTS and city and "/" not in city:
            found[city.replace("_", " ")] = continent
    states = {"North", "South", "West", "NSW", "ACT", "LHI", "Queensland", "Victoria", "Tasmania"}
    return [
        (city, continent, _CONTINENTS) for city, continent in found.items() if city not in states
    ]


def _sentences() -> Iterator[_Item]:
    """First sentences of the documentation of public functions and classes."""
    options = tuple(_SUBJECTS)
    seen: set[str] = set()
    for subject, modules in _SUBJECTS.items():
        for name in modules:
            module = importlib.import_module(name)
            for _, thing in inspect.getmembers(module, _public(module.__name__)):
                text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
                first = re.split(r"(?<=[.!?]) ", text)[0]
                if 30 <= len(first) <= 110 and first not in seen and first[0].isupper():
                    seen.add(first)
                    yield first, subject, options


def _public(module: str) -> Callable[[object], bool]:
    def told(thing: object) -> bool:
        home = str(getattr(thing, "__module__", "") or "")
        named = not str(getattr(thing, "__name__", "_")).startswith("_")
        return named and callable(thing) and home.split(".")[0].strip("_") in module

    return told


def _moods() -> Iterator[_Item]:
    for mood, words in _MOODS.items():
        for word in words.split():
            for thing in _THINGS.split():
                yield f"The {thing} was {word}.", mood, tuple(_MOODS)


def _verbs() -> Iterator[_Item]:
    for pair in _PASTS.split(","):
        verb, past = pair.split()
        regular = verb + ("d" if verb.endswith("e") else "ed")
        stem = verb[:-1] if verb.endswith("e") else verb
        options = dict.fromkeys((verb, regular, past, stem + "ing"))
        yield verb, past, tuple(options)


def _hidden(change: int, kind: str) -> Iterator[_Item]:
    if kind == "word":
        for word in _NOUNS.split():
            made = tuple(rule(word) for rule in _WORDS)
            yield word, made[change], made
    else:
        for number in range(12, 100):
            numbers = tuple(str(rule(number)) for rule in _NUMBERS)
            yield str(number), numbers[change], numbers


def _all(kind: str) -> list[list[_Item]]:
    """Items of a task; of a hidden change, by change."""
    if kind in ("word", "number"):
        return [list(_hidden(change, kind)) for change in range(len(_WORDS))]
    made = {"continent": _continents, "mood": _moods, "subject": _sentences, "past": _verbs}[kind]
    return [list(made())]


def asked(seed: int, each: int, *, kinds: Sequence[str] = TASKS) -> Asked:
    """`each` inputs of every task, in a seeded order, with pools that share none of them.

    Raises:
        InputError: for fewer than one input, an unknown task, or more than a task has.
    """
    if each < 1:
        raise InputError(f"each={each}; must be >= 1")
    inputs: list[tuple[str, Example]] = []
    pools: dict[str, tuple[Example, ...]] = {}
    options: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        if kind not in INSTRUCTIONS:
            raise InputError(f"task {kind!r} is unknown; known are {', '.join(TASKS)}")
        rng = random.Random(f"{kind}:{seed}")
        groups = _all(kind)
        texts = sorted({item[0] for group in groups for item in group})
        rng.shuffle(texts)
        if len(texts) < each + POOL:
            raise InputError(
                f"task {kind!r} has {len(texts)} items, {each} inputs and a pool of {POOL} need "
                "more; lower each"
            )
        fresh, shown = texts[:each], texts[each : each + POOL]
        for change, group in enumerate(groups):
            by_text = {item[0]: item for item in group}
            task = kind if len(groups) == 1 else f"{kind}-{change}"
            pools[task] = tuple(_example(kind, task, by_text[text], "demo") for text in shown)
            for place, text in enumerate(fresh):
                options[text] = by_text[text][2]
                if place % len(groups) == change:
                    inputs.append((kind, _example(kind, task, by_text[text], "ask")))
    random.Random(seed).shuffle(inputs)
    return Asked(
        tuple(example for _, example in inputs),
        tuple(kind for kind, _ in inputs),
        pools,
        options,
    )


def _example(kind: str, task: str, item: _Item, role: str) -> Example:
    text, answer, _ = item
    return Example(f"{role}:{task}:{text}", text, answer, task, INSTRUCTIONS[kind])
