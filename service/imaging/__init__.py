"""Bytes to safe RGB, geometry, colours, overlays, encoders; knows no HTTP and no torch."""
