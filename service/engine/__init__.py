"""The engine loads, runs and explains networks. It is the only package that imports torch, and it imports nothing of HTTP."""

import os

# The threads of torch sleep while they wait for each other. By default GNU OpenMP lets them spin, which is fastest where each
# thread has a core to itself; here they share the cores with the event loop, the codecs and other processes, and would spin
# while the thread that they wait for cannot run: ResNet-50 over 8 images took 2900 ms in place of 380 on two cores with other
# work to do. OpenMP reads the variable when torch is loaded, which happens only after this module is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
