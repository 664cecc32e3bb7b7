"""The use case: one request's way from bytes to answer."""
