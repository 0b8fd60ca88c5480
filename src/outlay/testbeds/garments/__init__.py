"""Garments on textured canvases, and a tiny ViT that names them.

Proofs of dropping and merging image tokens need a real `ViTForImageClassification` whose pictures
are mostly background. This is one, trained from scratch by `python -m outlay.testbeds.garments` and
shipped with the package; scenes are made on the fly from Fashion-MNIST and scikit-learn's digits.

>>> from outlay.testbeds.garments import World, load, scenes
"""

from outlay.testbeds.garments.evaluate import accuracy
from outlay.testbeds.garments.scenes import CLASSES, Scenes, World, scenes
from outlay.testbeds.garments.store import checkpoint_path, load

__all__ = ["CLASSES", "Scenes", "World", "accuracy", "checkpoint_path", "load", "scenes"]
