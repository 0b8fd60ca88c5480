"""Multi-hop questions over a knowledge graph, with path-grounded prompts and scaling curves.

The evaluation half of "Follow the Path: Reasoning over Knowledge Graph Paths to Improve LLM
Factuality" (fs1, arXiv 2505.11140): graphs and paths, questions, prompts, answers, parallel and
sequential test-time scaling, and analyses of both answers and traces.
"""
