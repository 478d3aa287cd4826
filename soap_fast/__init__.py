"""The SOAP optimizer for PyTorch (arXiv 2409.11321).

`python -m soap_fast` describes this install, `explain(optimizer)` what its steps consist of.
"""

from soap_fast.explain import explain
from soap_fast.graphs import GraphedStep
from soap_fast.soap import SOAP

__all__ = ["SOAP", "GraphedStep", "__version__", "explain"]

__version__ = "0.1.0"
