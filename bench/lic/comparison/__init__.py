"""Optimizers compared on models: searched rates, seeds, one report.

`presets` (what is compared) -> `plan` (the runs, in their order) -> `runner` (each is run once and
kept, see `kept`) -> `statistics` (means and spreads over seeds) -> `report` and `figures`.
"""
