"""A real mixture-of-experts model: SmolLM2's MLPs sliced into experts, with a trained router.

    from outlay.testbeds import moe
    model = moe.load(experts=48)          # a LocalModel around a MixtralForCausalLM

Everything but the router is the embedded model's own weights, cut when it is loaded; only the
router ships.
"""

from outlay.testbeds.moe.build import TOP_K, Router, build, load, sliced
from outlay.testbeds.moe.store import SHIPPED, read_router, router_path, write_router

__all__ = [
    "Router",
    "SHIPPED",
    "TOP_K",
    "build",
    "load",
    "read_router",
    "router_path",
    "sliced",
    "write_router",
]
