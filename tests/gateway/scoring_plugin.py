"""Compressors that misbehave, as another package would bring them: through an entry point."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from outlay.budget import Budget
from outlay.catalogue import Entry
from outlay.prompt.base import Compressed


@dataclass(frozen=True)
class Rogue:
    """A compressor of no use.

    Args:
        how: "longer" answers with more than it got, "crash" takes its process down, "hang" never
            ends, "raise" fails, "tell" fails with the prompt in its message, "chat" prints, "slow"
            takes half a second.
    """

    how: Literal["longer", "crash", "hang", "raise", "tell", "chat", "slow"] = "longer"

    def compress(
        self,
        prompt: str,
        question: str,
        budget: Budget,
        *,
        count: Callable[[str], int],
        language: str = "",
    ) -> Compressed:
        """Misbehave."""
        if self.how == "crash":
            os.abort()
        if self.how == "hang":
            time.sleep(3600)
        if self.how == "slow":
            time.sleep(0.5)
        if self.how == "raise":
            raise RuntimeError("no use")
        if self.how == "tell":
            raise RuntimeError(f"cannot read {prompt}")
        if self.how == "chat":
            print("a library that talks on its standard output")
        text = prompt + " word" * 50 if self.how == "longer" else "short"
        return Compressed(text, count(text), count(prompt))


entry = Entry("rogue", "scoring_plugin:Rogue", "prompt", "Rogue", "a compressor that misbehaves")


def install(folder: Path) -> None:
    """Metadata that makes this module a package's entry point."""
    info = folder / "scoring_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scoring-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[outlay.methods]\nrogue = scoring_plugin:entry\n")
    (folder / "scoring_plugin.py").write_text(Path(__file__).read_text("utf-8"), "utf-8")
