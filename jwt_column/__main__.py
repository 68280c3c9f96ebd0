"""``python -m jwt_column``: the ``jwt-column`` command."""

from .cli import main

if __name__ == "__main__":
    main()
