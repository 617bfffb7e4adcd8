"""One file per claim, each beside a peer where the peer can be installed, printing a ratio."""
