"""The commands' options: each parses, fills in the lab where nothing was given, calls one function."""
