"""Many seeds of one configuration at once: actions from one pass, updates in lockstep."""
