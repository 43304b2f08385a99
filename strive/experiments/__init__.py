"""Calls with the lab's defaults filled in, and runs of several stages, such as the demo."""
