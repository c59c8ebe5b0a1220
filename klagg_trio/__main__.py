"""`python -m klagg_trio`: the same as the console script `klagg`."""

from klagg_trio.cli import main

if __name__ == "__main__":
    main()
