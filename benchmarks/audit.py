"""Hash trees for audits: against hashing the same bytes through hashlib, and against pymerkle.

python benchmarks/audit.py [--leaves 4096] [--repeats 15] [--no-peer]

Leaves are fingerprints of 384-number embeddings, 3 088 bytes each. Times are of the process.
pymerkle runs in its own environment; roots and all proofs of 1 to 130 leaves are compared with it,
too. Embedding is not part of any row.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
from pathlib import Path

import numpy as np

import common
from common import Row
from outlay.audit.fingerprints import payload
from outlay.audit.tree import Tree, verify

MOST = 1.05  # times the bare hashing
SMALL = 130  # leaves of the largest tree whose proofs are all compared


def main() -> None:
    """Run all and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-peer", action="store_true")
    given = parser.parse_args()
    common.warn_if_busy()
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(given.leaves, 2, 384)).astype(np.float32)
    leaves = [payload("bound", i, i // 256, *pair) for i, pair in enumerate(vectors)]
    rows = [*_building(leaves, given.repeats), _verifying(leaves, given.repeats)]
    if not given.no_peer:
        rows += _pymerkle(leaves, given.repeats)
    common.write("audit", rows)


def _building(leaves: list[bytes], repeats: int) -> list[Row]:
    """The tree beside bare loops over the same leaves and the same pairs of children."""
    levels = Tree(leaves).levels
    pairs = [
        pair
        for level in levels
        for pair in zip(level[::2], level[1::2], strict=False)
        if len(level) > 1
    ]
    ready = [b"\x00" + leaf for leaf in leaves] + [b"\x01" + a + b for a, b in pairs]
    sha = hashlib.sha256

    def hashing() -> None:
        for leaf in leaves:
            sha(b"\x00" + leaf).digest()
        for left, right in pairs:
            sha(b"\x01" + left + right).digest()

    def joined() -> None:
        for message in ready:
            sha(message).digest()

    sides = {"tree": lambda: Tree(leaves).root, "hashlib": hashing, "joined": joined}
    seconds = common.turns(sides, repeats, clock="cpu")
    ours = seconds["tree"]
    note = f"{len(leaves)} leaves; target: at most {MOST} of the peer's time (ratio 0.952)"
    return [
        common.faster(
            "build a tree", ours, seconds["hashlib"], "hashlib, the same leaves and nodes", note
        ),
        common.faster(
            "build a tree",
            ours,
            seconds["joined"],
            "hashlib, prefixes and children joined beforehand",
            "no tree can know its nodes beforehand; for the cost of joining",
        ),
    ]


def _verifying(leaves: list[bytes], repeats: int) -> Row:
    tree = Tree(leaves)
    paths = [tree.prove(i) for i in range(0, len(leaves), 7)]

    def work() -> bool:
        return all(
            verify(leaves[7 * at], 7 * at, len(leaves), path, tree.root)
            for at, path in enumerate(paths)
        )

    assert work()
    seconds = common.turns({"verify": work}, repeats, clock="cpu")["verify"]
    each = 1e6 * statistics.median(seconds) / len(paths)
    size = sum(map(len, paths[1]))
    return Row("verify a proof", "us", each, note=f"a proof has {size} bytes of hashes")


def _pymerkle(leaves: list[bytes], repeats: int) -> list[Row]:
    python = common.peer_python("pymerkle")
    if python is None:
        return []
    driver = Path(__file__).parent / "peers" / "pymerkle_driver.py"
    request = {
        "leaves": [leaf.hex() for leaf in leaves],
        "repeats": repeats,
        "sizes": list(range(1, SMALL + 1)),
    }
    done = subprocess.run(
        [str(python), str(driver)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    if done.returncode:
        print(f"no peer pymerkle: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
        return []
    found = json.loads(done.stdout)
    tree = Tree(leaves)
    ours = common.turns({"tree": lambda: Tree(leaves).root}, repeats, clock="cpu")["tree"]
    ours_us = _verifying(leaves, repeats).ours
    same = "the same root" if found["root"] == tree.root.hex() else "ANOTHER root"
    mine, theirs = len(tree.prove(1)), found["path"]
    return [
        common.faster("build a tree", ours, found["build"], "pymerkle 6.1.0", same),
        Row(
            "verify a proof",
            "us",
            ours_us,
            1e6 * found["verify"],
            "pymerkle 6.1.0",
            1e6 * found["verify"] / ours_us,
            None,
            "ours hashes the leaf of 3 088 bytes too; pymerkle is given its hash",
        ),
        Row("hashes in a proof", "hashes", mine, theirs, "pymerkle 6.1.0", theirs / mine),
        _alike(leaves, found["small"]),
    ]


def _alike(leaves: list[bytes], theirs: dict[str, dict[str, object]]) -> Row:
    """Trees of 1 to `SMALL` leaves whose root and proofs are all those of pymerkle."""
    alike = 0
    for size in range(1, SMALL + 1):
        tree = Tree(leaves[:size])
        paths = [[each.hex() for each in tree.prove(index)] for index in range(size)]
        alike += theirs[str(size)] == {"root": tree.root.hex(), "paths": paths}
    note = f"of {SMALL} trees, of 1 to {SMALL} leaves: the root and every proof"
    return Row("trees that are the same", "trees", alike, SMALL, "pymerkle 6.1.0", note=note)


if __name__ == "__main__":
    main()
