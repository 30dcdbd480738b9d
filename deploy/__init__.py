"""The deploy puts workers on hosts."""
