"""Makes each lab model from scratch: `python -m strive.lab.recipes NAME --out DIR --seed S`."""
