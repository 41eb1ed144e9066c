"""What test modules share, by topic: small models, attacks to try, exact answers, small runs."""
