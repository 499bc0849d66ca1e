"""The programs that run behind the walls: the zygote, and the child processes that it forks.

The folder is started as a program of its own (`python inside/`), so it can import neither the rest of the package nor
anything that the host holds. The host imports one module of it, `wire`: the format of the messages between the two.
"""
