"""How good trained models are: on images, against each other, and as files."""

from bench.lic.evaluation.held_out import Quality, evaluate

__all__ = ["Quality", "evaluate"]
