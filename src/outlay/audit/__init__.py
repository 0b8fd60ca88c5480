"""Is the provider's billing honest? Commitments to hidden tokens, and audits of them."""
