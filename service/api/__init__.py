"""Speaks HTTP; knows no torch."""
