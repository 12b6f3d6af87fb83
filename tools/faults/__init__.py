"""Faults that are injected into real processes of hemafast: see tools/run_faults.py."""
