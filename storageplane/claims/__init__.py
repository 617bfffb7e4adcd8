"""What becomes of claims and volumes: the controllers' decisions, pure, and what users are told of them."""
