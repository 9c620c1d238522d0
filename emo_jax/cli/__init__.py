"""The command line: one file per verb, which parses its options and calls the package."""
