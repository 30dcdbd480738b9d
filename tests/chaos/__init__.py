"""The chaos campaign: a search of known answer under random faults, and then the books are balanced."""
