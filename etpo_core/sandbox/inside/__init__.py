"""What runs on the far side of the wall: the zygote and the children that it forks.

The folder is started as a program of its own (`python inside/`), so that it sees neither the rest of the package
nor anything the trainer holds. The host imports only `wire`, the description of the bytes that cross the wall.
"""
