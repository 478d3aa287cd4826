"""Triton kernels of soap_fast; installs as `soap_fast.triton_kernels`.

One op per file, in the order of a step. `soap_fast/fused/twins.py` has the eager twin that defines
each of them, under the same name:

    gather      gradients into planes, their folded mode rotated; sums of squares, Gram of the fold
    clock       which tensors step, their step counts and step sizes
    gram        K of the other modes; gram_reduce where it was computed in parts
    fold_gram   K of the folded modes
    rotate      one product per mode; the last one with Adam
    adam        Adam of what no product rotates
    norm        step sizes under normalize_grads
    rotate      the same products with the bases transposed, back
    apply       the folded mode rotated back, the update applied
    derive      operands of all these from the bases, after they changed

Every kernel is persistent: its programs walk a table of tiles on the device, so that a launch
covers all tensors of a model. `table` is how kernels read their tables, `plane` how those at both
ends of a step walk a tensor.
"""
