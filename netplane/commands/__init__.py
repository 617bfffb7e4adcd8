"""The commands of netplane's command line, one file per group; each has ``register(group)``."""
