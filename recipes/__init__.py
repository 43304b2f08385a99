"""Makes each lab model from scratch: `python -m recipes NAME --out DIR --seed S`."""
