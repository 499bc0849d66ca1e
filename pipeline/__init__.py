"""The stages of dvc.yaml, a thin script each."""
