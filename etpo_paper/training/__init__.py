"""One run of one method on one task with one seed: the loop, the files it writes and its checkpoint."""
