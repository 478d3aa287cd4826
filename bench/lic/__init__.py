"""Learned image compression: models, and their training by one optimizer or another."""
