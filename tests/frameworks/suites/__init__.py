"""Test suites of other libraries, run with their types and with this package's types.

None of their code is here. ``docs/contributing.md`` has the command, ``docs/explanation/prior-art.md`` the counts.
"""
