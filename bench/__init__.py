"""Benchmarks: each module is a part, run with `python -m bench.PART` (docs/performance.md)."""
