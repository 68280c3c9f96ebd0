"""One encrypted column: its type, its cipher, and its SQL."""
