"""Measurements of soap_fast. Runs from a clone (`python -m bench`); it is never installed."""
