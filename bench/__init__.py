"""Side-by-side measurements against other tools; `make bench` runs them all. Nothing imports this."""
