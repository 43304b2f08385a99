"""What offline, online and evaluation share: policies, inputs, generation, log-probs."""
