"""The paper's study on images of one's own: arXiv 2601.20769's claims, each beside what came out.

The runs are those of a comparison, by `watched` training: scores and outliers are taken along the
way. Their ends are quantised; `report` puts claims and measurements side by side, `figures` draws.
"""
