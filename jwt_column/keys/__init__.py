"""Data keys, key rings, and the providers that load them."""
