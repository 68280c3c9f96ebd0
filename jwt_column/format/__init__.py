"""Stored bytes: envelope, token and cipher. Nothing here knows SQL or a key ring."""
