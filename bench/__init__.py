"""Benchmarks: each module is one part, run with `python -m bench.PART` (see docs/performance.md)."""
