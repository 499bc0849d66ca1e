"""`python -m etpo_paper` is the command `etpo`."""

from etpo_paper.use.command import main

if __name__ == "__main__":
    main()
