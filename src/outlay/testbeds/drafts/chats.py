"""Questions whose answers by the target itself are part of what a draft is trained on.

A draft has to agree with what its target writes, which is not what people write. The questions are
templates over subjects, so that there are many; those of proofs and benchmarks are other ones.
"""

from __future__ import annotations

import random

_SUBJECTS = (
    "bread", "rivers", "the moon", "bicycles", "honey bees", "chess", "volcanoes", "glass", "tea",
    "libraries", "sleep", "trains", "the stock market", "earthquakes", "guitars", "maps", "salt",
    "penguins", "photosynthesis", "vaccines", "democracy", "the Roman empire", "coffee", "paper",
    "electric cars", "magnets", "gardening", "the ocean", "public speaking", "running", "cheese",
    "recursion", "sorting a list", "Python dictionaries", "unit tests", "git",
    "regular expressions", "HTTP", "databases", "hash tables", "binary search",
    "floating point numbers", "threads", "file systems", "JSON", "prime numbers", "probability",
    "fractions", "the Pythagorean theorem", "triangles", "compound interest",
    "a healthy breakfast", "a job interview", "a birthday party", "a weekend in Lisbon",
    "learning a language", "saving money", "stress", "good writing", "rain", "clouds",
    "dinosaurs", "black holes", "ants", "forests", "whales", "steel", "clocks", "printing",
    "radio", "cameras", "painting", "jazz", "the violin", "football", "swimming", "mountains",
    "deserts", "wheat", "rice", "chocolate", "tomatoes", "soap", "bridges", "tunnels", "ships",
)  # fmt: skip
_TEMPLATES = (
    "What is {x}? Answer in a few sentences.",
    "Explain {x} to a ten-year-old.",
    "Give me five facts about {x}.",
    "Write a short poem about {x}.",
    "Write a short story about {x}.",
    "What are common misconceptions about {x}?",
    "List the main steps or parts of {x}.",
    "Why does {x} matter?",
    "Write an email to a friend about {x}.",
    "Summarise the history of {x}.",
    "Compare {x} with {y}.",
    "What should a beginner know about {x}?",
    "Write a Python function that has something to do with {x}.",
    "Ask me three questions about {x}.",
    "What would the world be like without {x}?",
    "Make a plan to learn about {x} in a week.",
)


def questions(n: int, seed: int = 0) -> list[str]:
    """`n` different questions in random order, as many as there are at most."""
    rng = random.Random(f"{seed}:chats")
    found = [
        template.format(x=subject, y=rng.choice(_SUBJECTS))
        for template in _TEMPLATES
        for subject in _SUBJECTS
    ]
    rng.shuffle(found)
    return found[:n]
