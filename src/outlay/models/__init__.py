"""What produces tokens: local (transformers), embedded (the default) and endpoint models."""
