"""One file per kind of volume: objects into facts."""
