"""Checkpoints of other libraries: read without running their code, recognised by their keys, built as a network."""
