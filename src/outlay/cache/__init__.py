"""A smaller KV cache, or one that is had for less than the prompt's full forward pass."""
