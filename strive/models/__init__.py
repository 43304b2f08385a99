"""Policies: families, inputs, rows, completions and log-probs, for offline, online, evaluation."""
