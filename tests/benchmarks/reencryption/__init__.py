"""Re-encryption: ``python -m tests.benchmarks reencryption``.

``subjects.py`` says what is compared, ``samples.py`` what one measurement is, ``speed.py`` what becomes of many;
``conversion.py`` measures without a database, and ``safety.py`` counts lost updates.
"""
