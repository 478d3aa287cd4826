"""What `pytest bench/` runs: ops on classes of shapes by backends, with their work and roofs."""
