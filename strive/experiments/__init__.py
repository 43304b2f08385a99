"""What runs several stages in one go: the demonstration."""
