"""Metrics of how faithful a map is to the network. Nothing here knows a method."""
