"""RSD: speculative decoding over draft trees (see `outlay.decode.rsd.method`)."""

from outlay.decode.rsd.call import RSDResult
from outlay.decode.rsd.custom import rsd_generate
from outlay.decode.rsd.engine import Stats
from outlay.decode.rsd.method import RSD
from outlay.decode.rsd.ngram import NGram
from outlay.decode.rsd.structure import acceptance_profile

__all__ = ["RSD", "NGram", "RSDResult", "Stats", "acceptance_profile", "rsd_generate"]
