"""The fault matrix as one command: `./scripts/prove`. What it promises is in docs/reliability.md.

Theory of operation
-------------------
A row of the matrix is a module in `rows/`. It says how many runs CI does and how many a release
does, and its function `run` does one: it is given a seed, which decides all that can be decided,
and a folder of its own. A run starts real processes (`process.py`), often with something evil
between them and the exchange (`middle.py`), and lets `judge.py` say what came of it. The judge
knows the database as its users do, by SQL, the calendar, and the exchange's own answers; it shares
no code with klagg.

What a run has brought is written down at once (`ledger.py`), with the commit it was done at, so
that a release's hours can be spread over several nights.
"""
