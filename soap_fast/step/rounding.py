"""The noise floor: what rounding alone can make of an entry of the rotated basis.

A direction without gradient holds nothing but the rounding of the rotation. Adam divides it by its
own root mean square and makes a full step of it, so that weights move which no gradient asked to
move. An entry whose sqrt(v) lies below the floor takes no step: float32 does not know it.

    floor = noise_floor · UNITS · u · sqrt(trace K)

u is the unit roundoff of the state's dtype, 2^-24 in float32. trace K, the same for every factor of
a tensor, is the mean square of its whole gradient: K holds this call's gradient already, as v does,
so that nothing has to be added for gradients that grow.

Where rounding comes from, in units of u sqrt(trace K):

- g itself and the products err by a share of the sum of magnitudes behind an entry. That sum is at
  most |Q|ᵀ sqrt(diag K), by any mode's basis and factor, and so at most sqrt(trace K): 1 for g,
  about 1 for each product.
- The bases. A solver's eigenvectors, and the Q of a QR, err by some u of their length and not of
  each entry, so that a direction without gradient holds a share of the largest gradients wherever
  it points: 9 at most after first bases by LAPACK, 7 after refreshes by any of the algorithms, for
  d from 16 to 1280. A floor that is local to rows and columns does not see this, and failed.

`UNITS` is therefore 12. The floor is the same for all columns of a basis: a refresh only permutes
v, and the noise of one column stays noise in the place of another.

v averages by beta2 and K by beta_s: where v forgets faster, a gradient counts for more in it, by
(1 - beta2) / (1 - beta_s) at most.

The floor cannot tell directions without gradient from those whose gradients are so weak that K,
kept in float32, does not separate the two: below sqrt(u), 2e-4, of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch

from soap_fast.options import StepOptions

UNITS = 12


def noise_scale(options: StepOptions, dtype: torch.dtype) -> float:
    """The floor of sqrt(v) over sqrt(trace K); 0 switches it off."""
    unit = torch.finfo(dtype).eps / 2
    heavier = max(1.0, (1 - options.beta2) / (1 - options.shampoo_beta))
    return options.noise_floor * UNITS * unit * sqrt(heavier)


def noise_floor(
    factors: Sequence[torch.Tensor | None], options: StepOptions
) -> torch.Tensor | float:  # []
    """The floor of sqrt(v); 0 where no mode rotates: there is no rounding to fear.

    Args:
        factors: per mode K [d, d], this call's gradient included, or None.
        options: of the step.
    """
    first = next((k for k in factors if k is not None), None)
    return 0.0 if first is None else noise_scale(options, first.dtype) * first.trace().sqrt()
