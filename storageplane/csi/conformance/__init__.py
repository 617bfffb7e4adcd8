"""What csi-sanity does not ask, as a suite for any CSI driver (`storageplane csi-check`)."""
