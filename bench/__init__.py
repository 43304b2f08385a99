"""Side-by-side measurements against other tools, run by `make bench`. Nothing imports this."""
