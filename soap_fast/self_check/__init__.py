"""Whether a backend's steps are right on a device: checked once, and the verdict kept.

Kernels that are right on one chip have been wrong on another (triton-lang issues 9433 and 10821).
So before `backend=None` takes kernels on a CUDA device it has them step a few tensors there:

    problem     the tensors, and how far a backend's steps part from plain torch in float64
    isolated    the problem in a process of its own: a kernel may fault, or never end
    verdict     what came out, kept in the user's cache folder for this device and these versions
    checking    a verdict: the kept one, or a new one
    choice      the backend that steps a device's tensors
"""

from soap_fast.self_check.checking import check, check_here
from soap_fast.self_check.choice import Choice
from soap_fast.self_check.problem import TOLERANCE, largest_error
from soap_fast.self_check.verdict import Verdict

__all__ = ["TOLERANCE", "Choice", "Verdict", "check", "check_here", "largest_error"]
