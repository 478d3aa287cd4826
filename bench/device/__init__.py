"""What `python -m bench device` runs, and how it goes on where it was stopped."""
