"""Other optimizers beside ours: all in one run, on the same parameters and gradients."""
