"""Reading any table: in key order, by its indexes, within the size of its columns."""
