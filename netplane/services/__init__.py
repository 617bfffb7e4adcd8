"""Services and endpoint slices into nftables maps."""
