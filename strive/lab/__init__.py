"""The embedded world: synthetic clips and questions, and tiny models with real architectures."""

from strive.lab.models import LabModel, describe, lab_model_names, lab_model_path

__all__ = ["LabModel", "describe", "lab_model_names", "lab_model_path"]
