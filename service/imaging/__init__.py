"""Decodes, resamples, renders and encodes images and heatmaps. This package imports nothing of HTTP and no torch."""

import logging

import cv2

# Codec threads process one image each; with OpenCV's own thread pool in each of them there would be more threads than cores.
cv2.setNumThreads(1)

# If the home directory is not writable, matplotlib keeps its list of fonts in a temporary directory and logs two warnings,
# which an operator does not need. If no directory at all is writable, torch does not start either.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
