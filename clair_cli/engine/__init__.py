"""Where work runs: threads, and a device."""
