"""NetworkPolicy into facts."""
