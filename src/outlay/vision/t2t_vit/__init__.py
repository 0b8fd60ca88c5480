"""T2T-ViT: tokens that know their neighbourhood, at the price of plain patches (arXiv 2101.11986).

>>> from outlay.vision.t2t_vit import T2TViT, Tokens

The modules `tokeniser`, `model`, `clip`, `official` and `training` need torch and transformers.
"""

from outlay.vision.t2t_vit.method import PRESETS, T2TViT
from outlay.vision.t2t_vit.tokens import Tokens, splits_for

__all__ = ["PRESETS", "T2TViT", "Tokens", "splits_for"]
