"""Networks and what they know: loading, running, explaining. The only room that knows torch; it knows no HTTP."""

import os

# Threads of torch wait for each other asleep. By default GNU OpenMP lets them spin, which is best where each has a core to
# itself; here they share the cores with the event loop, the codecs and other processes, and spin while the one that they wait
# for cannot run: ResNet-50 over 8 images took 2900 ms in place of 380 on two cores with other work to do. Read when torch is
# loaded, which is only ever after this.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
