"""One module per verb of the command line: wiring, no algorithm."""
