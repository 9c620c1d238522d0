"""The networks of EMO (Section 3.2), built from one config at any size."""
