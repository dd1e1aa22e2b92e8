"""What a batch of modules says about each pair of clients."""
