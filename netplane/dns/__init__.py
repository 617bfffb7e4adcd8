"""Objects into a zone, the zone into wire answers, and the server at the edge."""
