"""One module a command, loaded when the command runs: what `cli` declares, these do."""
