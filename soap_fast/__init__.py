"""The SOAP optimizer for PyTorch (arXiv 2409.11321).

`python -m soap_fast` describes this install, `explain(optimizer)` what its steps consist of,
`precondition(optimizer, grads)` what it would do to other gradients. `diagnostics` tells, of any
optimizer, how losses and steps agree, and how far activations have outliers.
"""

from soap_fast import diagnostics
from soap_fast.graphs import GraphedStep
from soap_fast.inspect.explain import explain
from soap_fast.inspect.precondition import precondition
from soap_fast.soap import SOAP
from soap_fast.versions import __version__

__all__ = ["SOAP", "GraphedStep", "__version__", "diagnostics", "explain", "precondition"]
