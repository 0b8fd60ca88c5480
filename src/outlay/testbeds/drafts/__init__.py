"""Drafts: shallow, distilled copies of the embedded model, for speculative decoding.

A draft keeps some layers of SmolLM2-135M and repairs them with low-rank updates and norms that are
trained to agree with the whole model. Only those updates ship; they are merged when a draft is
built, so whoever has the embedded model has its draft. Made by `python -m outlay.testbeds.drafts`.

>>> from outlay.models import embedded
>>> from outlay.testbeds.drafts import draft_for
>>> draft = draft_for(embedded.load())
"""

from outlay.testbeds.drafts.store import draft_for, shipped_path, smollm2_draft

__all__ = ["draft_for", "shipped_path", "smollm2_draft"]
