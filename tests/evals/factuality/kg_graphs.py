"""Random graphs for property tests."""

import random

from outlay.evals.factuality.graph import Graph


def random_graph(seed: int) -> Graph:
    """Up to 12 nodes, with cycles, self-loops and parallel relations."""
    draw = random.Random(seed)
    nodes = [f"n{i}" for i in range(draw.randint(2, 12))]
    edges = draw.randint(1, 3 * len(nodes))
    facts = [
        (draw.choice(nodes), f"r{draw.randrange(3)}", draw.choice(nodes)) for _ in range(edges)
    ]
    return Graph(facts, name=f"random {seed}")
