"""The embedded world: synthetic clips and questions, and tiny models with real architectures."""
