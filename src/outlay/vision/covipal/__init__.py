"""CoViPAL: visual tokens pruned by a small trained module that knows the question."""

from outlay.vision.covipal.lessons import Lessons, collect
from outlay.vision.covipal.method import CoViPAL
from outlay.vision.covipal.ppm import PPM, Shape
from outlay.vision.covipal.store import Trained, load, save

__all__ = ["CoViPAL", "Lessons", "PPM", "Shape", "Trained", "collect", "load", "save"]
