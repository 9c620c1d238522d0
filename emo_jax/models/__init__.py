"""The networks of EMO (Section 3.2), one code for every size."""
