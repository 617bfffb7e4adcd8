"""pytest fixtures over the lab."""
