"""Learned image compression, trained with three optimizers: `python -m bench.lic train`."""
