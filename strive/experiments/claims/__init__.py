"""The pre-registered test of the paper's mechanism on the lab."""
