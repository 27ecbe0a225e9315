"""Studies: what runs trainings."""
