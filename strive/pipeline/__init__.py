"""The offline stage: records -> decode -> frames -> embed -> scores, into the cache."""
