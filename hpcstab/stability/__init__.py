"""Numerical stability: gate, guards, provenance, and numerics that models may use."""
