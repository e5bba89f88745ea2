"""Random workloads, and the proof that a reset undoes each of them."""
