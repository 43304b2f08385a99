"""The nearest frames of a whole cache to a text, and near-duplicates between records."""
