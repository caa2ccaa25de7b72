"""`python -m pipeline`: the same command as the console script `sidpipe`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
