"""Signs that a measurement may be wrong: what is asked, what it shows, and what follows."""
