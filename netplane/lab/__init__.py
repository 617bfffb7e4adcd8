"""Networks of namespaces on one machine, for engineers and for pytest."""
