"""Optimizers compared on models: searched rates, seeds, one report.

`plan` (what is compared, and the runs in their order) -> `runner` (each is run once and kept) ->
`statistics` (means and spreads over seeds) -> `report`, with its drawing.
"""
