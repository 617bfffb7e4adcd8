"""The CSI driver (server) and the client for other drivers."""
