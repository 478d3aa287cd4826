"""What `python -m bench gate` holds a tree to, a file per kind of check."""
