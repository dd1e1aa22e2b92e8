"""Each client's own adapter, denoised."""
