"""Paid requests: part files, the state machine of their batches, the service, and what came back."""
