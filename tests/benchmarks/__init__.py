"""What encryption, search and re-encryption cost, as ratios within one run: ``python -m tests.benchmarks --help``.

Nothing here is a test, because no test may depend on a time; ``test_benchmarks.py`` only sees to it that the commands
keep working. ``measure.py`` says what a figure is; ``values.py`` and ``tables.py`` are the parts of ``columns.py``.
``docs/reference/benchmarks.md`` says what is measured, and has the figures of a run.
"""
