"""`python -m outlay.vision.covipal --size S`: train and store the module of one seer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Parse, train, store, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m outlay.vision.covipal")
    parser.add_argument("--size", choices=("S", "M"), default="S")
    parser.add_argument("--out", type=Path, help="folder; the default is the shipped one")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    import torch

    import outlay.testbeds
    from outlay.vision.covipal.shipped import make
    from outlay.vision.covipal.store import save

    torch.set_num_threads(asked.threads)
    home = Path(outlay.testbeds.__file__).parent / "seer" / f"ppm-{asked.size.lower()}"
    trained = make(asked.size)
    folder = save(trained, asked.out or home, dtype=torch.float16)
    print(folder)
    print(json.dumps({"guidance_layer": trained.guidance_layer, **trained.about}, indent=1))
    print(json.dumps(dict(trained.calibration), indent=1))


if __name__ == "__main__":
    main()
