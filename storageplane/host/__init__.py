"""What this machine's kernel is asked to do for volumes: mounts, loops, trees of files, records on disk."""
