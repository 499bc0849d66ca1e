"""The command line `etpo`: the method on a table of one's own. `docs/use.md` shows it."""
