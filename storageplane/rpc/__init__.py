"""Unary gRPC on a unix socket: a server that knows nothing of what it serves (docs/rpc.md)."""
