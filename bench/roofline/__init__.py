"""What is measured against: what a machine can do, and what a step has to do."""
