"""A file for each op: its tiles and tables, what they cost, and its twin in plain torch."""
