"""How launches are made: launchers, how kernels are compiled, uploads, the order of streams."""
