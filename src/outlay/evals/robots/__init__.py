"""Multi-robot worlds, four ways for robots to agree on a joint plan, and what each one costs."""
