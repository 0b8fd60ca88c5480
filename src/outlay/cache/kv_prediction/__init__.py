"""KV Prediction: a small model reads the prompt for a big one (arXiv 2410.08391).

>>> from outlay.cache.kv_prediction import KVPrediction
"""

from outlay.cache.kv_prediction.method import KVPrediction

__all__ = ["KVPrediction"]
