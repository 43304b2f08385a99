"""Asking a policy the questions of a benchmark: generate and append, then grade; grade again."""
