"""What every test gets: generated examples that are the same in every run."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("klagg", derandomize=True, deadline=None)
settings.load_profile("klagg")
