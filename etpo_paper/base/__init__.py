"""What every other room stands on: folders, settings, provenance, the machine and its processes."""
