"""The command line of storageplane."""
