"""The server: an OpenAI-compatible gateway with hard budgets in front of any model."""
