"""One encrypted column: its type, its cipher, and its SQL."""

# Mappers are listened to from the moment that any module of this folder is imported, before a class is mapped.
from . import orm as orm
