"""Tasks and environments with verifiers."""
