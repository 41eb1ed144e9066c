"""What a person reads of a run: the page and the terminal's summary. Made of the run folder alone,
without torch."""
