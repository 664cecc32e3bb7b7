"""Bytes to safe RGB, geometry, colours, overlays, encoders; knows no HTTP and no torch."""

import logging

import cv2

# Images are worked on in codec threads, one each; with OpenCV's own pool in every one of them the cores would be oversold.
cv2.setNumThreads(1)

# Where the home directory cannot be written, matplotlib keeps its list of fonts in a temporary directory. That works; its two
# warnings say nothing that an operator needs. Where no directory at all can be written, torch does not start either.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
