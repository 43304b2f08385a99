"""Typed, frozen configurations: the schema, its loader, presets and DeepSpeed settings."""
