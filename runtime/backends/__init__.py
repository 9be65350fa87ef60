"""Backends: what runs the pieces, and keeps the state of the rows it decodes."""
