"""The analysis reads results and models back: tables, plots, models."""
