"""Small real models and worlds on which proofs and tests run."""
