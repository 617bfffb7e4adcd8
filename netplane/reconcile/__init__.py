"""Objects in, facts out, differences applied: the loop that every room shares."""
