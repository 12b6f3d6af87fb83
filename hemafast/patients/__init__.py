"""Patients: their differential counts, and labels of patients learned from their cells."""
