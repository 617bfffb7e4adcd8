"""The commands, a file per group; cli.py registers them."""
