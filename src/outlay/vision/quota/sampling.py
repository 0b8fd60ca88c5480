"""Which frames of a video are looked at: more for longer videos, evenly in time (paper, section 3).

Differs from the release, which asks for T frames of a clip that has fewer and so repeats frames:
here every frame is taken once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outlay.errors import InputError
from outlay.vision.quota.checks import whole

MAX_FRAMES = 100_000
"""Most frames that are scored for one question."""


@dataclass(frozen=True)
class Sampled:
    """Frames of a video, in order.

    Args:
        index: of each, in the video, ascending.
        seconds: of each, when it is shown.
        duration: of the video, in seconds.
    """

    index: tuple[int, ...]
    seconds: tuple[float, ...]
    duration: float

    def described(self, kept: Sequence[int] | None = None) -> str:
        """The sentence that goes before the question: how long, and when the frames are.

        Args:
            kept: which of the frames the model sees; None for all. Frames that got no tokens are
                not spoken of.

        Raises:
            InputError: for a frame that was not sampled.
        """
        chosen = range(len(self.index)) if kept is None else kept
        bad = [at for at in chosen if not 0 <= at < len(self.index)]
        if bad:
            raise InputError(f"frame {bad[0]} is none of the {len(self.index)} that were sampled")
        times = ", ".join(f"{self.seconds[at]:.2f} s" for at in chosen)
        return (
            f"The video is {self.duration:.2f} seconds long. You see {len(chosen)} of its frames, "
            f"at {times}."
        )


def frame_count(seconds: float, *, t_base: int = 96, alpha: int = 64) -> int:
    """Frames to look at: `t_base`, and `alpha` more for each hour in proportion.

    Args:
        seconds: length of the video.
        t_base: frames of a short one.
        alpha: frames that an hour adds.

    Raises:
        InputError: for t_base < 1, alpha < 0, or a length that is negative or not finite.
    """
    whole("t_base", t_base, 1, MAX_FRAMES)
    whole("alpha", alpha, 0, MAX_FRAMES)
    if not math.isfinite(seconds) or seconds < 0:
        raise InputError(f"the video is {seconds} seconds long; need a finite length >= 0")
    count = t_base + math.floor(seconds / 3600 * alpha)
    if count > MAX_FRAMES:
        raise InputError(
            f"{seconds:g} seconds of video ask for {count} frames, more than {MAX_FRAMES}; lower "
            "alpha or t_base, or cut the video"
        )
    return count


def sample(frames: int, *, fps: float = 1.0, t_base: int = 96, alpha: int = 64) -> Sampled:
    """Frames of a video at even distances, the first and the last included, none twice.

    Args:
        frames: of the video.
        fps: frames a second.
        t_base, alpha: see `frame_count`.

    Raises:
        InputError: for a video without frames, or fps that is not positive.
    """
    whole("frames", frames, 1, 2**40)
    if not math.isfinite(fps) or fps <= 0:
        raise InputError(f"fps={fps}; need a finite number > 0")
    count = frame_count(frames / fps, t_base=t_base, alpha=alpha)
    index = np.unique(np.linspace(0, frames - 1, min(count, frames)).astype(np.int64))
    return Sampled(
        tuple(index.tolist()), tuple(float(at) / fps for at in index.tolist()), frames / fps
    )
