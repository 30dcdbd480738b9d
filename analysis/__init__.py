"""The analysis reads results and models back: tables, plots, models. It never writes to the database."""
