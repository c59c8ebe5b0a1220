"""The pure core: everything that decides what a bar is. No I/O, no clock, no logging."""
