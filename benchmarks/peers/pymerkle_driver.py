"""Builds, proves and verifies with pymerkle; JSON in, JSON out. Runs in the peer's environment."""

import json
import statistics
import sys
import time

from pymerkle import InmemoryTree, verify_inclusion


def main() -> None:
    """Read the request, answer on standard output."""
    request = json.load(sys.stdin)
    leaves = [bytes.fromhex(leaf) for leaf in request["leaves"]]

    def build() -> InmemoryTree:
        tree = InmemoryTree.init_from_entries(leaves, algorithm="sha256")
        tree.get_state()
        return tree

    tree = build()
    seconds = []
    for _ in range(request["repeats"]):
        start = time.process_time()
        build()
        seconds.append(time.process_time() - start)
    root = tree.get_state()
    numbers = range(1, len(leaves) + 1, 7)
    proofs = [(tree.get_leaf(number), tree.prove_inclusion(number)) for number in numbers]
    checked = []
    for _ in range(request["repeats"]):
        start = time.process_time()
        for leaf, proof in proofs:
            verify_inclusion(leaf, root, proof)
        checked.append((time.process_time() - start) / len(proofs))
    answer = {
        "build": seconds,
        "verify": statistics.median(checked),
        "root": root.hex(),
        "path": len(proofs[0][1].path) - 1,
        "small": {str(size): _all(leaves[:size]) for size in request["sizes"]},
    }
    json.dump(answer, sys.stdout)


def _all(leaves: list[bytes]) -> dict[str, object]:
    """The root of some leaves, and the sibling hashes of every proof from below."""
    tree = InmemoryTree.init_from_entries(leaves, algorithm="sha256")
    numbers = range(1, len(leaves) + 1)
    paths = [[each.hex() for each in tree.prove_inclusion(n).path[1:]] for n in numbers]
    return {"root": tree.get_state().hex(), "paths": paths}


if __name__ == "__main__":
    main()
