"""The command line of netplane."""
