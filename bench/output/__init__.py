"""What is kept of a measurement and shown: result files, and tables and bars of terminals."""
