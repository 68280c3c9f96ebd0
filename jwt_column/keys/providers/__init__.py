"""Providers: one module per URI scheme. :mod:`jwt_column.keys.schemes` imports each when a URI first names it."""
