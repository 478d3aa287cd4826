"""The SOAP optimizer for PyTorch (arXiv 2409.11321).

`python -m soap_fast` describes this install.
"""

from soap_fast.soap import SOAP

__all__ = ["SOAP", "__version__"]

__version__ = "0.1.0"
