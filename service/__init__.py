"""camserve: explanations for image classifiers, as a service."""

__version__ = "0.1.0"
