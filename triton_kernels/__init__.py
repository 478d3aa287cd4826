"""Triton kernels of soap_fast; installs as `soap_fast.triton_kernels`.

One op per file, in the order of a step. `soap_fast/backends/triton/ops/` has the host's side of
each, under the same name, and the eager twin that defines it. `columns` names what tables hold, for
both sides. Nothing here imports anything of soap_fast outside of this folder.

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

and of a refresh, once the bases are new:

    count       what became of each basis, whose moments follow
    derive      carrying matrices in place of the transposed bases
    gather      exp_avg into planes, where it is folded or padded
    rotate      one product per mode but the last
    permute     exp_avg_sq in the new order of columns
    settle      the last product, and both moments to their places

Every kernel is persistent: its programs walk a table of tiles on the device, so that a launch
covers all tensors of a model. `table` is how kernels read their tables, `plane` how those at both
ends of a step walk a tensor, `registers` how they rotate a small fold, `product` how tiles are
multiplied. Where tiles are of several classes the loop over them hoists nothing (`disable_licm`):
each class has offsets of its own, which, kept in registers across all tiles, took up to 96 of them
and spilled.
"""
