"""The wiring of storageplane."""
