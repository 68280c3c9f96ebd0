"""A program for each framework, run against the real library.

The libraries are the extra ``test-frameworks``; without them the programs are skipped. They use no fixture of
``tests/conftest.py``, so that their environment needs no database driver (``pytest --noconftest``).
"""
