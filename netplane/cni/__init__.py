"""CNI 1.1: request, IPAM, facts and result (pure), and the server at the edge."""
