"""Fuzz targets for what reads bytes of others: ``python -m tests.fuzz envelope -max_total_time=60``."""
