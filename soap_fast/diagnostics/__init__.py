"""How well losses and steps agree, how good the bases are, how far activations have outliers.

For any model and any optimizer: what arXiv 2601.20769 says of SOAP (less conflict within a step and
between steps, fewer outliers) can be looked at in a run of one's own. Nothing here changes a
parameter, a gradient, an optimizer's state or a generator of random numbers.
"""

from soap_fast.diagnostics.activations import ActivationStatistics, Outliers, kurtosis, outliers
from soap_fast.diagnostics.factors import off_diagonal
from soap_fast.diagnostics.scores import Scores, inter_step_score, intra_step_score
from soap_fast.diagnostics.updates import InterStepScore

__all__ = [
    "ActivationStatistics",
    "InterStepScore",
    "Outliers",
    "Scores",
    "inter_step_score",
    "intra_step_score",
    "kurtosis",
    "off_diagonal",
    "outliers",
]
