"""Options of the commands: parse, fill in the lab where nothing was given, call one function."""
