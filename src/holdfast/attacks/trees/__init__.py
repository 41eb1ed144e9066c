"""What reads the leaves of trees."""
