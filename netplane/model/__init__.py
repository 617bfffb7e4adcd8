"""Objects (declared), facts (kernel), snapshot, errors: pure data, imports nothing of ours."""
