"""A tiny vision-language model that really reads pictures, and the scenes that it reads.

Proofs and tests of methods that keep few visual tokens want a LLaVA whose answers depend on what it
sees, and scenes of which every pixel is known. Trained in minutes by `python -m
outlay.testbeds.seer`, shipped with the package in four sizes: S (64 tokens), M (144), HR (tiles,
LLaVA-NeXT) and V (clips). Scenes need the Debian package `dataset-fashion-mnist`.

>>> from outlay.testbeds.seer import load
>>> from outlay.testbeds.seer.evaluate import held_out, score
>>> seer = load("S")
>>> asked = held_out("S", 256)
>>> {kind: part.mean() for kind, part in score(seer, asked).items()}
"""

from outlay.testbeds.seer.clips import CLIP_KINDS, Clips, clips
from outlay.testbeds.seer.questions import (
    ONE_TOKEN,
    SCENE_KINDS,
    TWO_TOKENS,
    VOCABULARY,
    Question,
)
from outlay.testbeds.seer.scenes import COLOURS, SceneObject, Scenes, scenes
from outlay.testbeds.seer.store import checkpoint_path, load

__all__ = [
    "CLIP_KINDS",
    "COLOURS",
    "ONE_TOKEN",
    "SCENE_KINDS",
    "TWO_TOKENS",
    "VOCABULARY",
    "Clips",
    "Question",
    "SceneObject",
    "Scenes",
    "checkpoint_path",
    "clips",
    "load",
    "scenes",
]
