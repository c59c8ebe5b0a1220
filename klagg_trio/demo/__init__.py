"""`klagg demo`: a stage for simulator, backfill and run in one process, and its judge."""
