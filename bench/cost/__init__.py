"""The model of cost: what a launch issues, moves and waits for, by its machine code and tables."""
