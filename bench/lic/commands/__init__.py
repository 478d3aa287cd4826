"""The commands of `python -m bench.lic`: a file each, with its options (`add`) and its `run`."""
