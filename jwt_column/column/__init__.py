"""One encrypted column: its type, its cipher, and its SQL."""

# Tables, mappers and statements are watched as soon as any module of this folder is imported, before a class is mapped.
from . import declarations as declarations
from . import orm as orm
from . import statements as statements
