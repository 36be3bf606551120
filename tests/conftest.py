"""TensorFlow runs on one thread in every test, as it does in a simulation, and as many tests beside one another want it."""

import os

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
