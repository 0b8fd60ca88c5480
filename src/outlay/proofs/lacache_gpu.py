"""The LaCache proof at its largest, as one command for a machine with a GPU.

python3 -m outlay.proofs.lacache_gpu --out DIR [--device cuda] [--tiny]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from outlay.proofs import lacache


def main() -> None:
    """Run and save under `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="Every part, at the least size.")
    options = parser.parse_args()
    if options.tiny:
        tiny = replace(lacache.SIZES["gpu"], tokens=160, each=1, shares=(0.5,), batch=5, streamed=1)
        tiny = replace(tiny, texts=1, predicted=96, after=(96,), window=32, stream=512, near=256)
        tiny = replace(tiny, capacity=96, steps=4, full=256, long=((160, 5),))
        lacache.SIZES = {**lacache.SIZES, "gpu": tiny}
    began = time.perf_counter()

    def say(message: str) -> None:
        print(f"{time.perf_counter() - began:7.1f} s  {message}", flush=True)

    result = lacache.run("gpu", seed=options.seed, progress=say, device=options.device)
    for path in result.save(options.out):
        say(f"wrote {path}")
    print(result.table())


if __name__ == "__main__":
    main()
