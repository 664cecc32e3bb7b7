"""Bytes to safe RGB, geometry, colours, overlays, encoders; knows no HTTP and no torch."""

import cv2

# Images are worked on in codec threads, one each; with OpenCV's own pool in every one of them the cores would be oversold.
cv2.setNumThreads(1)
