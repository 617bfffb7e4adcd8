"""What Kubernetes' controllers would do, when there is no Kubernetes."""
